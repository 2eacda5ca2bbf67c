"""`--adapter`, and an adapter as the model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from base64 import b64encode
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from idefics_cli.cli.services import Services
from idefics_cli.models.hub.facts import demo_folder, find_facts
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.http_servers import CHAT, chat, read

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning"),
]


@pytest.fixture(scope="module")
def styles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters for the built-in model, `a` and `b`, with other numbers in each."""
    from tests.support.adapters import library_model, train

    root = tmp_path_factory.mktemp("styles")
    for name, alpha in (("a", 60), ("b", 90)):
        train(library_model(demo_folder()), root / name, lora_alpha=alpha)
        _set_base(root / name, "demo")
    Image.new("RGB", (64, 64), "red").save(root / "red.png")
    return root


def _set_base(folder: Path, base: str | None) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": base}))


def ask(styles: Path, *arguments: str) -> Ran:
    picture = str(styles / "red.png")
    services = Services(stdin=None)
    return run("ask", "What is it?", "-i", picture, "--json", *arguments, services=services)


def test_an_adapter_for_another_model_is_refused_before_a_download(styles: Path) -> None:
    ran = ask(styles, "-m", "smolvlm-500m", "--adapter", str(styles / "a"))
    assert ran.code == 1
    assert ran.err.splitlines() == [
        f"error: the adapter `{styles / 'a'}` does not fit smolvlm-500m: it is for layers that are "
        "192 wide, and those of the model are 960",
        "hint: an adapter works with the model for which it was made: it was made for `demo`",
    ]


@pytest.mark.parametrize(("layer", "is_refused"), [(31, False), (32, True)])
def test_an_adapter_for_a_model_of_another_name_is_told_before_a_download(
    layer: int, is_refused: bool, styles: Path, tmp_path: Path
) -> None:
    name = f"text_model.layers.{layer}.self_attn.q_proj"
    adapter = with_layer(styles, tmp_path / "c", name, base="others/smolvlm")
    services = World(FakeEngine("A red picture."), is_cached=False).services
    services = replace(services, find_facts=find_facts)
    ran = run("ask", "What?", "-m", "smolvlm-500m", "--adapter", adapter, services=services)
    if is_refused:
        assert ran.code == 1
        assert "it is for layer 32, and the model has 32 layers" in ran.err
        return
    assert ran.code == 0
    told, download = ran.err.splitlines()
    assert told.endswith(
        "was made for others/smolvlm, and the model is HuggingFaceTB/SmolVLM-500M-Instruct"
    )
    assert "is not downloaded yet" in download


def test_an_adapter_answers_with_its_base_model_however_it_is_named(styles: Path) -> None:
    a = str(styles / "a")
    ways = (("-m", "demo", "--adapter", a), ("--adapter", a), ("-m", a))
    answers = [json.loads(ask(styles, *way).out) for way in ways]
    plain = json.loads(ask(styles, "-m", "demo").out)
    assert {tuple(each["token_ids"]) for each in answers} == {tuple(answers[0]["token_ids"])}
    assert answers[0]["token_ids"] != plain["token_ids"]
    assert [each["model"] for each in answers] == ["demo", a, a]
    assert {each["adapter"] for each in answers} == {a}
    assert "adapter" not in plain


def test_an_adapter_without_a_base_needs_the_name_of_a_model(styles: Path, tmp_path: Path) -> None:
    shutil.copytree(styles / "a", tmp_path / "c")
    _set_base(tmp_path / "c", None)
    ran = ask(styles, "--adapter", str(tmp_path / "c"))
    assert ran.code == 1
    assert "does not say for which model it was made" in ran.err
    assert f"`-m MODEL --adapter {tmp_path / 'c'}`" in ran.err
    assert ask(styles, "-m", "demo", "--adapter", str(tmp_path / "c")).code == 0


def test_the_adapter_of_another_model_of_the_hub_is_told(styles: Path, tmp_path: Path) -> None:
    name = "text_model.layers.0.mlp.down_proj"
    adapter = with_layer(styles, tmp_path / "c", name, base="HuggingFaceM4/idefics2-8b")
    ran = run("ask", "x", "-m", "smolvlm-256m", "--adapter", adapter, "--dry-run")
    assert f"the adapter {adapter} was made for HuggingFaceM4/idefics2-8b" in ran.out
    own = run("ask", "x", "-m", "idefics2-8b", "--adapter", adapter, "--dry-run", "--json")
    plan = json.loads(own.out)
    assert not [warning for warning in plan["warnings"] if "was made for" in warning]
    assert plan["adapter"].endswith("c")
    (reason,) = (each for each in plan["reasons"] if each["subject"] == "adapter")
    assert "made for HuggingFaceM4/idefics2-8b" in reason["why"]


def with_layer(styles: Path, folder: Path, layer: str, *, base: str) -> str:
    """Write an adapter for one *layer*, which is 960 wide, of the model *base* to *folder*."""
    shutil.copytree(styles / "a", folder)
    _set_base(folder, base)
    name = f"base_model.model.model.{layer}.lora_A.weight"
    save_file({name: torch.zeros(8, 960)}, folder / "adapter_model.safetensors")
    return str(folder)


def with_run(styles: Path, folder: Path, **run: object) -> str:
    """Copy the adapter `a` to *folder*, with what `idefics tune` writes about its training."""
    shutil.copytree(styles / "a", folder)
    (folder / "idefics.json").write_text(json.dumps({"run": run}))
    return str(folder)


def plan_of(*arguments: str) -> dict[str, object]:
    plan: dict[str, object] = json.loads(run("ask", "x", "--dry-run", "--json", *arguments).out)
    return plan


def test_pictures_have_the_detail_that_the_adapter_was_trained_with(
    styles: Path, tmp_path: Path
) -> None:
    adapter = with_run(styles, tmp_path / "c", splitting=True, longest_edge=56)
    plain = plan_of("-m", "demo")
    assert (plain["splitting"], plain["longest_edge"]) == (None, None)
    for way in (("-m", "demo", "--adapter", adapter), ("--adapter", adapter)):
        plan = plan_of(*way)
        assert (plan["splitting"], plan["longest_edge"], plan["warnings"]) == (True, 56, [])
    other = plan_of("--adapter", adapter, "--no-splitting", "--longest-edge", "112")
    assert (other["splitting"], other["longest_edge"]) == (False, None)
    assert other["warnings"] == [
        f"the adapter {adapter} was trained with splitting on, which is off now, and with a "
        "longest edge of 56 pixels, which is 112 now"
    ]


def test_an_adapter_that_is_still_trained_is_told(styles: Path, tmp_path: Path) -> None:
    adapter = with_run(styles, tmp_path / "c")
    assert plan_of("--adapter", adapter)["warnings"] == []
    Path(adapter, "idefics.json").write_text('{"finished": false, "run": {}}')
    warning = (
        f"the training of the adapter {adapter} has not ended; the same `idefics tune` goes on"
    )
    assert plan_of("--adapter", adapter)["warnings"] == [warning]
    merged = run("models", "merge", adapter, "-o", str(tmp_path / "merged"))
    assert merged.code == 0
    assert f"warning: {warning}" in merged.err.splitlines()


def test_a_whole_model_that_is_still_trained_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(demo_folder(), folder)
    record = folder / "idefics.json"
    for finished, told in ((True, []), (False, [str(folder)])):
        record.write_text(json.dumps({"finished": finished, "run": {}}))
        warnings = plan_of("-m", str(folder))["warnings"]
        assert warnings == [
            f"the training of {name} has not ended; the same `idefics tune` goes on"
            for name in told
        ]


def test_an_adapter_of_another_config_is_told(styles: Path, tmp_path: Path) -> None:
    from idefics_cli.models.hub.adapters import config_digest

    right = with_run(styles, tmp_path / "r", base_config=config_digest(demo_folder()))
    wrong = with_run(styles, tmp_path / "w", base_config="0" * 64)
    assert plan_of("-m", "demo", "--adapter", right)["warnings"] == []
    assert plan_of("-m", "demo", "--adapter", wrong)["warnings"] == [
        f"the adapter {wrong} was trained on demo with another config.json than demo has, so its "
        "answers may be wrong"
    ]


def test_a_copy_with_quantized_weights_counts_as_the_same_model(tmp_path: Path) -> None:
    from idefics_cli.models.hub.adapters import config_digest

    config = json.loads((demo_folder() / "config.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "quantization_config": {}, "dtype": "float16"}))
    assert config_digest(tmp_path) == config_digest(demo_folder())
    path.write_text(json.dumps({**config, "image_token_id": 7}))
    assert config_digest(tmp_path) != config_digest(demo_folder())


def test_captions_ask_the_question_that_the_adapter_was_trained_with(
    styles: Path, tmp_path: Path
) -> None:
    adapter = with_run(styles, tmp_path / "c", prompt="What is {stem}?")
    command = ("caption", str(styles / "red.png"), "--adapter", adapter, "--dry-run")
    own = run(*command, services=Services(stdin=None))
    assert own.code == 0
    assert own.err == "note: the prompt is that of the adapter: What is {stem}?\n"
    output = str(tmp_path / "out.jsonl")
    assert run(*command[:-1], "-o", output, services=Services(stdin=None)).code == 0
    header = json.loads(Path(f"{output}.run.json").read_text())
    assert header["settings"]["prompt"] == "What is {stem}?"
    given = run(*command, "-p", "Is it red?", services=Services(stdin=None))
    assert (given.code, given.err) == (0, "")
    odd = with_run(styles, tmp_path / "odd", prompt="What is {stein}?")
    ran = run(*command[:2], "--adapter", odd, services=Services(stdin=None))
    assert ran.code == 2
    assert "the prompt has an unknown field `{stein}`" in ran.err


def test_captions_of_another_adapter_are_another_run(styles: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out.jsonl")
    command = ("caption", str(styles / "red.png"), "-m", "demo", "-o", output)
    services = Services(stdin=None)
    assert run(*command, "--adapter", str(styles / "a"), services=services).code == 0
    other = run(*command, "--adapter", str(styles / "b"), services=services)
    assert other.code == 2
    assert "adapter" in other.err
    assert run(*command, services=services).code == 2
    again = run(*command, "--adapter", str(styles / "a"), services=services)
    assert again.code == 0


def test_a_merged_model_needs_no_adapter(styles: Path, tmp_path: Path) -> None:
    merged = str(tmp_path / "merged")
    ran = run("models", "merge", str(styles / "a"), "-o", merged)
    assert tuple(ran) == (0, f"{merged}\n", "")
    # The weights of the built-in model are in bfloat16.
    found, expected = (
        json.loads(ask(styles, "--dtype", "bfloat16", *way).out)["token_ids"]
        for way in (("-m", merged), ("--adapter", str(styles / "a")))
    )
    assert found == expected
    again = run("models", "merge", str(styles / "a"), "-o", merged)
    assert (again.code, again.out) == (2, "")
    assert f"`{merged}` exists already" in again.err
    assert run("models", "merge", merged, "-o", str(tmp_path / "b")).code == 1
    missing = run("models", "merge", str(styles / "a"))
    assert (missing.code, missing.err.splitlines()[-1]) == (2, "hint: `-o FOLDER`")


def test_a_missing_adapter_is_named_as_an_adapter() -> None:
    ran = run("ask", "x", "--adapter", "no-such-style", "--dry-run")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: there is no adapter `no-such-style`\n")


def test_a_benchmark_takes_no_adapter(styles: Path) -> None:
    ran = run("bench", "decode", "-m", str(styles / "a"))
    assert ran.code == 2
    assert "plain transformers would run without it" in ran.err


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_server_answers_with_its_adapter(styles: Path, warm_python: tuple[str, ...]) -> None:
    picture = (styles / "red.png").read_bytes()
    body = chat("What is it?", "data:image/png;base64," + b64encode(picture).decode())
    expected = json.loads(ask(styles, "-m", str(styles / "a")).out)["text"]
    command = [*warm_python, "-m", "idefics_cli", "serve", "--port", "0", "--json", "-q"]
    with subprocess.Popen(
        [*command, "-m", "demo", "--adapter", str(styles / "a")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        connection = HTTPConnection("127.0.0.1", json.loads(process.stdout.readline())["port"])
        headers = {"Content-Type": "application/json"}
        connection.request("POST", CHAT, json.dumps(body).encode(), headers)
        _, _, answer = read(connection.getresponse())
        connection.close()
        process.terminate()

    assert process.returncode == 0
    assert answer["model"] == "demo"
    assert answer["choices"][0]["message"]["content"] == expected
