"""Lists of examples, as `idefics caption` writes them, for `--examples`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.core.types import Attachment
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine

FORM = 'each line is like `{"image": "a.jpg", "text": "A red kite."}`'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("photos/a.png", "photos/b.png", "site.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), (len(name), ord(name[-5]), 0)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(name: str, *rows: Mapping[str, str | None]) -> None:
    path = Path(os.path.expanduser(name))
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def ask(rows: str) -> tuple[Ran, list[tuple[str, str]]]:
    """Return the result of a question with *rows*, and the pictures and texts of the examples."""
    world = World(FakeEngine("x"))
    ran = run("ask", "What?", "-i", "site.png", "--examples", rows, services=world.services)
    shown = []
    for request in world.engine.requests:
        for asked, answer in zip(request.messages[0::2], request.messages[1::2], strict=False):
            (picture,) = (part for part in asked.parts if isinstance(part, Attachment))
            shown.append((picture.digest, "".join(map(str, answer.parts))))
    return ran, shown


def digest(path: str) -> str:
    return sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("rows", "prefix"),
    [("out/rows.jsonl", "photos/"), ("out/rows.jsonl", "../photos/"), ("photos/x.jsonl", "")],
)
@pytest.mark.usefixtures("folder")
def test_paths_of_examples_are_those_of_a_list_to_caption(rows: str, prefix: str) -> None:
    texts = {"a": "A kite.", "b": "A bird."}
    write_rows(rows, *({"file_name": f"{prefix}{n}.png", "caption": t} for n, t in texts.items()))
    ran, shown = ask(rows)

    assert tuple(ran) == (0, "x\n", "")
    assert shown == [(digest(f"photos/{n}.png"), text) for n, text in texts.items()]


def test_a_list_in_the_home_folder_has_its_pictures_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder / "photos"))
    write_rows("~/x.jsonl", {"file_name": "a.png", "caption": "A kite."})

    assert ask("~/x.jsonl")[1] == [(digest("photos/a.png"), "A kite.")]


@pytest.mark.usefixtures("folder")
def test_failed_rows_are_no_examples() -> None:
    failed = {"file_name": "no.png", "caption": None, "status": "error", "error": "no such file"}
    good = {"file_name": "a.png", "caption": "A kite.", "status": "ok"}
    write_rows("photos/x.jsonl", failed, good, failed)
    ran, shown = ask("photos/x.jsonl")

    assert tuple(ran) == (0, "x\n", "note: left out 2 failed rows of `photos/x.jsonl`\n")
    assert shown == [(digest("photos/a.png"), "A kite.")]


@pytest.mark.usefixtures("folder")
def test_a_list_without_examples_is_an_error() -> None:
    write_rows("x.jsonl", {"file_name": "a.png", "status": "error"})
    ran, _ = ask("x.jsonl")

    assert tuple(ran) == (1, "", f"error: the list `x.jsonl` has no examples\nhint: {FORM}\n")
