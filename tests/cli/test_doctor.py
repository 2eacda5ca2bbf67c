"""`idefics doctor`: machine, plan, reasons, and the verdict in the last line."""

from __future__ import annotations

import json
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from idefics_cli.cli.services import Services
from idefics_cli.core.units import GIB
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import registry_facts
from idefics_cli.models.planning.plan import PlanChoices, make_plan
from idefics_cli.ui.views.plan import render_plan
from tests.support import checkpoints, machines
from tests.support.commands import Ran, run
from tests.support.machines import A100, RTX_4090, VERSIONS


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def doctor(
    machine: Machine,
    *arguments: str,
    broken: Mapping[str, str] | None = None,
    failing: Sequence[str] = (),
    **environ: str,
) -> Ran:
    services = Services(
        environ=dict(environ),
        probe=lambda: machine,
        broken_packages=lambda: broken or {},
        failing_kernels=lambda spec: [name for name in failing if name in spec.kernels.names],
    )
    return run("doctor", *arguments, services=services)


def last_line(ran: Ran) -> str:
    return ran.out.rstrip("\n").rpartition("\n")[2]


@pytest.mark.parametrize(
    ("machine", "model", "expected"),
    [
        (machines.cpu(24, "avx512_bf16"), "idefics2-8b", ("cpu", "bfloat16", "none", None)),
        (machines.cpu(64, "avx512_bf16"), "idefics-80b", ("cpu", "bfloat16", "4bit", None)),
        (machines.gpus(RTX_4090), "idefics2-8b", ("cuda", "bfloat16", "none", None)),
        (machines.gpus(A100), "idefics-80b", ("cuda", "bfloat16", "4bit", None)),
        (machines.gpus(RTX_4090, RTX_4090), "idefics2-8b", ("cuda", "bfloat16", "none", None)),
        (machines.gpus(RTX_4090, RTX_4090), "idefics-80b", ("cuda", "bfloat16", "4bit", "auto")),
    ],
)
def test_the_plan_is_sound_without_a_gpu_with_one_and_with_two(
    machine: Machine, model: str, expected: tuple[str | None, ...]
) -> None:
    ran = doctor(machine, "-m", model, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.record["ready"] is True
    assert ran.record["error"] is None
    plan = ran.record["plan"]
    chosen = tuple(plan[key] for key in ("device", "dtype", "quantization", "device_map"))
    assert chosen == expected
    assert plan["model"] == model
    assert all(m["total_bytes"] <= m["usable_bytes"] for m in plan["memory"])
    assert len(plan["memory"]) == (2 if plan["device_map"] else 1)
    assert {r["subject"] for r in plan["reasons"]} >= {"device", "dtype", "quantization"}
    assert len(ran.record["machine"]["gpus"]) == len(machine.gpus)


def test_a_person_reads_machine_versions_plan_and_a_verdict() -> None:
    ran = doctor(machines.gpus(RTX_4090, cache=Path("/data/hub")), "-m", "idefics2-8b")
    assert (ran.code, ran.err) == (0, "")
    for text in (
        "cuda:0     RTX 4090, 23.6 GiB of 24.0 GiB free, capability 8.9",
        "torch         2.13.0, built for cuda 13.0",
        "idefics2-8b: 8.4 B parameters, chats",
        "quantization  none",
        "about 31.3 GiB from HuggingFaceM4/idefics2-8b to /data/hub",
    ):
        assert text in ran.out
    assert last_line(ran) == "ready: idefics2-8b runs on cuda, after a download of about 31.3 GiB"


def test_a_download_that_does_not_fit_is_not_ready() -> None:
    machine = replace(machines.gpus(RTX_4090, cache=Path("/data/hub")), cache_free_bytes=20 * GIB)
    ran = doctor(machine, "-m", "idefics2-8b")
    assert ran.code == 1
    assert last_line(ran) == (
        "not ready: the download takes 31.3 GiB, and 20.0 GiB are free in /data/hub "
        "(make room there, or set HF_HOME to a larger disk)"
    )


def test_the_text_holds_the_plan_of_a_dry_run() -> None:
    machine = machines.cpu(24)
    facts = next(facts for facts in registry_facts() if facts.name == "smolvlm-500m")
    shown = render_plan(make_plan(facts, PlanChoices(), machine))
    assert shown in doctor(machine, "-m", "smolvlm-500m").out


def test_what_is_cached_is_ready_without_a_download(root: Path) -> None:
    checkpoints.put_in_cache(root, "HuggingFaceM4/idefics2-8b", checkpoints.files())
    ran = doctor(machines.gpus(RTX_4090), "-m", "idefics2-8b", "--offline")
    assert ran.code == 0
    assert last_line(ran) == "ready: idefics2-8b runs on cuda"


def test_a_kernel_that_fails_its_self_test_is_not_named_as_what_runs() -> None:
    versions = {**VERSIONS, "llvmlite": "0.50.0"}
    machine = machines.cpu(24, "fma", torch_cpu_capability="AVX2", versions=versions)
    call = ("-m", "idefics2-8b", "--quantization", "4bit")
    sound, failed = (
        doctor(machine, *call, "--json", failing=names).record["plan"]
        for names in ((), ("int4_compiled",))
    )
    assert sound["kernels"]["text"][:2] == ["int4_compiled", "int4_torch"]
    assert failed["kernels"]["text"] == sound["kernels"]["text"][1:]
    assert failed["kernels"]["head"] == sound["kernels"]["head"]
    told = (
        "the kernel `int4_compiled` fails its self-test on this computer; `int4_torch` replaces it"
    )
    assert failed["warnings"] == [*sound["warnings"], told]
    shown = doctor(machine, *call, failing=["int4_compiled"]).out
    (products,) = (line.split() for line in shown.splitlines() if line.startswith("  products"))
    assert products[1] == "int4_torch"
    assert f"! {told}" in shown.splitlines()


@pytest.mark.parametrize("given", ["flag", "variable"])
def test_offline_what_is_not_cached_is_not_ready(given: str) -> None:
    machine = machines.gpus(RTX_4090)
    if given == "flag":
        ran = doctor(machine, "-m", "idefics2-8b", "--offline")
    else:
        ran = doctor(machine, "-m", "idefics2-8b", IDEFICS_OFFLINE="1")
    assert ran.code == 1
    assert last_line(ran) == (
        "not ready: `idefics2-8b` is not in the cache, and the network is switched off "
        "(`idefics models pull idefics2-8b` with the network)"
    )


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--check",)])
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("smolvlm-500", "unknown model `smolvlm-500`\nhint: did you mean `smolvlm-500m` or "),
        ("./nosuch", "there is no folder `./nosuch`\nhint: give a folder, a Hub id"),
    ],
)
def test_a_wrong_name_is_an_error_before_the_machine_is_described(
    arguments: tuple[str, ...], name: str, error: str
) -> None:
    ran = doctor(machines.cpu(24), "-m", name, *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"error: {error}")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("-m", "idefics-80b"), "needs 51.6 GiB on cpu", "models that fit: "),
        (("-m", "idefics2-8b", "--device", "cuda"), "built for the CPU", "pytorch.org"),
        (("-m", "demo", "--attention", "flash_attention_2"), "needs a CUDA GPU", "sdpa"),
    ],
)
def test_what_cannot_run_is_told_with_the_machine(
    arguments: tuple[str, ...], message: str, hint: str
) -> None:
    machine = machines.cpu(24)
    ran = doctor(machine, *arguments)
    assert (ran.code, ran.err) == (1, "")
    assert "Test CPU, 8 cores" in ran.out
    assert last_line(ran).startswith("not ready: ")
    assert message in last_line(ran)
    assert hint in last_line(ran)
    record = doctor(machine, *arguments, "--json").record
    assert record["ready"] is False
    assert record["plan"] is None
    assert message in record["error"]["message"]
    assert hint in record["error"]["hint"]


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_broken_library_is_told_before_any_plan(package: str) -> None:
    ran = doctor(machines.cpu(24), "-m", "demo", broken={package: "libfoo.so is missing"})
    assert ran.code == 1
    assert last_line(ran) == (
        f"not ready: {package} cannot be imported: libfoo.so is missing "
        f"(pip install --force-reinstall {package})"
    )


def test_a_broken_bitsandbytes_only_matters_when_it_is_needed() -> None:
    broken = {"bitsandbytes": "CUDA Setup failed"}
    machine = machines.gpus(machines.RTX_4090)
    ran = doctor(machine, "-m", "demo", broken=broken)
    assert ran.code == 0
    assert "0.50.2; cannot be imported: CUDA Setup failed" in ran.out
    ran = doctor(machine, "-m", "demo", "--quantization", "4bit", broken=broken)
    assert ran.code == 1
    assert "CUDA Setup failed" in last_line(ran)


def test_notes_of_the_probe_are_warnings() -> None:
    machine = machines.cpu(24, notes=("the driver is too old",))
    ran = doctor(machine, "-m", "demo")
    assert "! the driver is too old" in ran.out
    assert doctor(machine, "-m", "demo", "--json").record["machine"]["notes"] == [
        "the driver is too old"
    ]


def test_every_option_of_the_plan_reaches_it() -> None:
    ran = doctor(
        machines.gpus(RTX_4090),
        *("-m", "idefics2-8b", "--device", "cuda:0", "--dtype", "float16", "--quantization"),
        *("8bit", "--attention", "eager", "--no-splitting", "--threads", "2", "--revision", "v1"),
        "--json",
    )
    plan = ran.record["plan"]
    assert {key: plan[key] for key in ("device", "dtype", "quantization", "attention")} == {
        "device": "cuda",
        "dtype": "float16",
        "quantization": "8bit",
        "attention": "eager",
    }
    assert (plan["splitting"], plan["threads"], plan["revision"]) == (False, 2, "v1")


def test_names_cannot_drive_the_terminal() -> None:
    machine = machines.cpu(24, cpu_name="bad\x1b[2Jname", notes=("red \x1b[31m",))
    assert "\x1b" not in doctor(machine, "-m", "demo").out


def test_no_path_below_home_is_told_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    machine = replace(machines.cpu(24), cache=Path("/home/somebody/.cache/hub"))
    for arguments in ((), ("--json",)):
        text = doctor(machine, "-m", "smolvlm-256m", *arguments).out
        assert "somebody" not in text
        assert "~/.cache/hub" in text


def test_the_json_is_one_line() -> None:
    ran = doctor(machines.cpu(24), "-m", "demo", "--json")
    assert ran.out.count("\n") == 1
    assert json.loads(ran.out)["machine"]["versions"] == VERSIONS
    assert json.loads(ran.out)["machine"]["ram_bytes"] == 24 * GIB


def test_the_json_has_no_home_no_user_and_no_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "marie-curie"
    model = home / "models" / "mine"
    for name, content in checkpoints.files().items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(content)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setattr(platform, "node", lambda: "curies-machine")
    monkeypatch.setattr(socket, "gethostname", lambda: "curies-machine")
    broken = {"bitsandbytes": f"{home}/venv/lib/libbnb.so: cannot open /mnt/marie-curie/x.so"}
    machine = machines.cpu(24, cache=home / "hub", notes=(f"read {home}",))
    (model / "no").mkdir()
    for arguments in (("-m", str(model)), ("-m", str(model / "no"))):
        ran = doctor(machine, *arguments, "--json", broken=broken)
        assert "models/mine" in ran.out
        assert "~/venv/lib/libbnb.so: cannot open /mnt/USER/x.so" in ran.out
        for private in ("marie-curie", str(tmp_path), "curies-machine"):
            assert private not in ran.out


def test_the_memory_of_training_is_told_without_data() -> None:
    shown = doctor(machines.gpus(RTX_4090), "-m", "idefics2-8b", "--quantization", "4bit").out
    assert "training of an adapter (`idefics tune`)\n  takes about " in shown
    refused = doctor(machines.gpus(RTX_4090), "-m", "idefics2-8b", "--quantization", "8bit").out
    assert "training of an adapter (`idefics tune`): weights in 8bit cannot be trained" in refused
