"""From the arguments to stdout, with real models."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.cli.services import Services
from idefics_cli.demo.samples import write_samples
from tests.support import tiny
from tests.support.commands import Ran
from tests.support.commands import run as run_with
from tests.support.prompts import picture
from tests.support.reference import Turn, load_reference

NEW_TOKENS = 10


def run(*arguments: str) -> Ran:
    """Run the command on the real machine, with an empty stdin."""
    return run_with(*arguments, services=Services(environ=dict(os.environ), stdin=None))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for index in range(3):
        paths.append(folder / f"picture {index}.png")
        picture(index).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_samples(folder, count=10, seed=4)
    return folder


def truth(folder: Path) -> dict[str, str]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["file_name"]: row["caption"] for row in rows}


@pytest.mark.parametrize(
    ("kind", "count"), [*((kind, 3) for kind in tiny.CHATTING), ("idefics", 0), ("idefics2", 1)]
)
def test_ask_gives_the_tokens_of_plain_transformers(
    kind: str, count: int, checkpoint: Callable[[str], Path], pictures: list[Path]
) -> None:
    folder = checkpoint(kind)
    images = [f"-i{path}" for path in pictures[:count]]
    ran = run(
        "ask", "What is in it?", *images, "--json", "--dtype", "float32", "-m", str(folder),
        "--max-new-tokens", str(NEW_TOKENS), "--device", "cpu", "-q",
    )  # fmt: skip
    turns: list[Turn] = [("user", [picture(i) for i in range(count)], "What is in it?")]
    reference = load_reference(folder, kind)
    inputs = reference.inputs(turns)
    assert (ran.code, ran.err) == (0, "")
    assert ran.record["token_ids"] == reference.generate(inputs, max_new_tokens=NEW_TOKENS)
    assert ran.record["prompt_tokens"] == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("kind", ["idefics-base", "idefics2-base", "idefics3", "smolvlm2"])
def test_ask_raw_gives_the_tokens_of_plain_transformers(
    kind: str, checkpoint: Callable[[str], Path], pictures: list[Path]
) -> None:
    folder = checkpoint(kind)
    prompt = "First <image> and then <image>"
    ran = run(
        "ask", "--raw", prompt, f"-i{pictures[0]}", f"-i{pictures[1]}", "--json",
        "--dtype", "float32", "-m", str(folder), "--max-new-tokens", str(NEW_TOKENS),
        "--device", "cpu", "-q",
    )  # fmt: skip
    reference = load_reference(folder, kind)
    inputs = reference.raw_inputs(prompt, [picture(0), picture(1)])
    assert (ran.code, ran.err) == (0, "")
    assert ran.record["token_ids"] == reference.generate(inputs, max_new_tokens=NEW_TOKENS)


def test_a_piped_question_gives_one_line_and_nothing_else(
    scenes: Path, warm_python: tuple[str, ...]
) -> None:
    rows = (scenes / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [
        (row["file_name"], q["question"], q["answer"])
        for row in map(json.loads, rows)
        for q in row["questions"]
        if q["task"] == "count"
    ]
    name, question, answer = asked[0]
    done = subprocess.run(
        [*warm_python, "-m", "idefics_cli", "chat", "-m", "demo", "-i", str(scenes / name)],
        input=question.encode(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{answer}\n".encode(), b"")


def test_captions_of_a_folder_are_true(scenes: Path) -> None:
    ran = run("caption", str(scenes), "-m", "demo", "-q")
    expected = [f"{scenes}/{name}\t{caption}\n" for name, caption in sorted(truth(scenes).items())]
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "".join(expected)


def test_a_bad_file_is_reported_and_the_rest_is_captioned(scenes: Path, tmp_path: Path) -> None:
    good = sorted(truth(scenes).items())[:3]
    for name, _ in good:
        (tmp_path / name).write_bytes((scenes / name).read_bytes())
    (tmp_path / "broken.png").write_bytes((scenes / good[0][0]).read_bytes()[:200])
    (tmp_path / "note.png").write_text("hello")
    ran = run("caption", str(tmp_path), "-m", "demo", "--format", "jsonl", "-q")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == 3
    assert {Path(r["file_name"]).name: r["caption"] for r in rows if r["status"] == "ok"} == dict(
        good
    )
    assert {Path(r["file_name"]).name: r["error_kind"] for r in rows if r["status"] != "ok"} == {
        "broken.png": "truncated",
        "note.png": "not_an_image",
    }
    errors = [line for line in ran.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert "broken.png" in errors[0]
    assert "note.png" in errors[1]


def test_a_text_in_front_of_the_prompt_comes_from_stdin(
    scenes: Path, warm_python: tuple[str, ...]
) -> None:
    name, caption = next(iter(truth(scenes).items()))
    done = subprocess.run(
        [
            *warm_python,
            "-m",
            "idefics_cli",
            "ask",
            "-m",
            "demo",
            "-i",
            "-",
            "Describe this image.",
        ],
        input=(scenes / name).read_bytes(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{caption}\n".encode(), b"")
