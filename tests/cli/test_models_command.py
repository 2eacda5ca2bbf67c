"""`idefics models`: the list, downloads, and the folder of a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from idefics_cli.cli.services import Services
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import demo_folder, find_facts
from idefics_cli.models.hub.registry import MODELS
from idefics_cli.models.loading import quantized_store
from idefics_cli.models.planning.plan import PlanChoices, make_plan
from tests.support import checkpoints, machines
from tests.support.commands import Ran, run
from tests.support.hub import COMMIT, FakeHub, empty_cache, online
from tests.support.machines import RTX_4090

REPO = "somebody/tiny"
SMOLVLM = "HuggingFaceTB/SmolVLM-256M-Instruct"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    return empty_cache(tmp_path / "hub", monkeypatch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with two models."""
    files = checkpoints.files()
    with online(FakeHub({REPO: files, SMOLVLM: files}), monkeypatch) as server:
        yield server


def models(*arguments: str, machine: Machine | None = None, **environ: str) -> Ran:
    here = machine or machines.cpu(24)
    services = Services(environ=dict(environ), probe=lambda: here)
    return run("models", *arguments, services=services)


def test_every_model_is_listed_with_how_it_would_run() -> None:
    ran = models()
    assert (ran.code, ran.err) == (0, "")
    header, *lines = ran.out.splitlines()
    assert header.split() == ["NAME", "WEIGHTS", "DOWNLOAD", "HERE"]
    assert [line.split()[0] for line in lines] == list(MODELS)
    rows = {line.split()[0]: line for line in lines}
    assert "built in" in rows["demo"]
    assert "31.3 GiB" in rows["idefics2-8b"]
    assert "cpu bfloat16" in rows["idefics2-8b"]
    assert "a base model" in rows["idefics2-8b-base"]
    assert "80.0 B" in rows["idefics-80b"]
    assert "too large" in rows["idefics-80b"]


@pytest.mark.parametrize("machine", [machines.cpu(24), machines.gpus(RTX_4090, RTX_4090)])
def test_the_list_says_what_the_plan_says(machine: Machine) -> None:
    records = models("--json", machine=machine).record
    assert [record["name"] for record in records] == list(MODELS)
    for record in records:
        if not record["fits"]:
            assert "GiB" in record["problem"]
            continue
        made = make_plan(find_facts(record["name"]), PlanChoices(), machine)
        for key in ("device", "dtype", "quantization"):
            assert record[key] == getattr(made.spec, key)
        assert record["needed_bytes"] == sum(need.total for need in made.needs)


def test_a_cached_model_is_listed_with_its_size(root: Path) -> None:
    before = {record["name"]: record for record in models("--json").record}
    assert not before["smolvlm-256m"]["cached"]
    assert before["smolvlm-256m"]["size_bytes"] == 0
    content = checkpoints.files()
    checkpoints.put_in_cache(root, SMOLVLM, content)
    after = {record["name"]: record for record in models("--json").record}
    assert after["smolvlm-256m"]["cached"]
    assert after["smolvlm-256m"]["size_bytes"] == sum(map(len, content.values()))
    assert after["smolvlm-256m"]["download_bytes"] == 0
    assert not after["smolvlm-500m"]["cached"]


def test_kept_quantized_weights_leave_the_table_in_shape_on_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = quantized_store.Stored(tmp_path, SMOLVLM, "4bit", 300 * 2**20)
    monkeypatch.setattr(quantized_store, "list_stored", lambda root: iter([kept]))
    services = Services(environ={"COLUMNS": "80"}, probe=lambda: machines.cpu(24))
    lines = run("models", services=services, terminal=True).out.splitlines()

    column = lines[0].index("HERE") + len("cpu bfloat16  ")
    first, end = (
        next(number for number, line in enumerate(lines) if line.startswith(model))
        for model in ("smolvlm-256m", "smolvlm-500m")
    )
    assert " ".join(line[column:] for line in lines[first:end]) == (
        "the smallest; fast without a GPU; 0.3 GiB quantized"
    )
    assert all(line[:column].isspace() for line in lines[first + 1 : end])


@pytest.mark.parametrize("name", ["smolvlm-256m", SMOLVLM, REPO])
def test_a_pulled_model_is_where_path_says(hub: FakeHub, root: Path, name: str) -> None:
    missing = models("path", name)
    assert (missing.code, missing.out) == (1, "")
    assert missing.err.startswith(f"error: `{name}` is not in the cache ({root})\nhint: ")
    pulled = models("pull", name)
    assert (pulled.code, pulled.err) == (0, "")
    folder = Path(pulled.out.rstrip("\n"))
    assert folder.name == COMMIT
    assert (folder / "model.safetensors").exists()
    found = models("path", name)
    assert (found.code, found.out, found.err) == (0, pulled.out, "")


def test_a_pull_of_another_revision_leaves_main_alone(hub: FakeHub) -> None:
    assert models("pull", REPO, "--revision", COMMIT).code == 0
    assert models("path", REPO, "--revision", COMMIT).code == 0
    assert models("path", REPO).code == 1
    failed = models("pull", REPO, "--revision", "v9")
    assert (failed.code, failed.out) == (1, "")
    assert failed.err.startswith(f"error: `{REPO}` has no revision `v9`\n")


@pytest.mark.parametrize("command", ["pull", "path"])
def test_the_built_in_model_is_in_the_package(command: str) -> None:
    ran = models(command, "demo")
    assert (ran.code, ran.out) == (0, f"{demo_folder()}\n")


@pytest.mark.parametrize("command", ["pull", "path"])
def test_an_unknown_name_is_an_error_with_near_names(command: str) -> None:
    ran = models(command, "idefics2-8")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: unknown model `idefics2-8`\nhint: did you mean `idefics2-8b`")


def test_a_model_of_another_family_is_not_downloaded(hub: FakeHub) -> None:
    hub.repos[REPO] = checkpoints.files(model_type="llava")
    ran = models("pull", REPO)
    assert ran.code == 1
    assert "type `llava`" in ran.err
    assert hub.downloads("model.safetensors") == 0


def test_a_local_folder_needs_no_pull(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "mine", checkpoints.files())
    ran = models("pull", str(folder))
    assert (ran.code, ran.out) == (1, "")
    assert "is a local folder" in ran.err
    assert models("path", str(folder)).out == f"{folder}\n"


def test_offline_nothing_is_asked(hub: FakeHub) -> None:
    ran = models("pull", "smolvlm-256m", "--offline")
    assert (ran.code, ran.out) == (1, "")
    assert "network is switched off" in ran.err
    assert models("pull", REPO, IDEFICS_OFFLINE="1").code == 1
    assert not hub.requests


def test_an_unreachable_hub_is_one_error_and_one_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    ran = models("pull", "smolvlm-256m")
    assert (ran.code, ran.out) == (1, "")
    lines = ran.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"]
    assert SMOLVLM in lines[0]
    assert "`-m demo` is built in" in lines[1]
