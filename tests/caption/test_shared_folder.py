"""A folder that others may write to: no link of theirs is followed, no file there is replaced."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine

# Temporary files had these names in an earlier version.
NAMES = [
    "o.jsonl.tmp", "o.jsonl.rewriting", "o.jsonl.run.json.tmp", "o.jsonl.failures.txt.tmp",
    "o.jsonl.part", "o.parquet.tmp", "o.parquet.rewriting.rows.jsonl", "o.parquet.rows.jsonl.tmp",
    "g.html.tmp", f"photos/.idefics-{socket.gethostname()}-{os.getpid()}.tmp", "photos/a.txt.tmp",
]  # fmt: skip


@pytest.fixture(autouse=True)
def photos(here: Path) -> Path:
    folder = here / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (folder / name).write_text(name, "utf-8")
    return folder


def caption(*arguments: str, answer: str = "a cat") -> Ran:
    world = World(FakeEngine(lambda request: answer))
    return run("caption", "photos", *arguments, services=world.services)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_files_and_links_with_names_like_ours_survive(kind: str, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text("private", "utf-8")
    for name in NAMES:
        if kind == "link":
            Path(name).symlink_to(private)
        else:
            Path(name).write_text("mine", "utf-8")
    for output in (["-o", "o.jsonl"], ["-o", "o.parquet"], ["-f", "txt"]):
        assert caption(*output, "--report", "g.html").code == 0
        # A changed picture makes the rows of a file be written anew.
        Path("photos/a.jpg").write_text(f"other {output}", "utf-8")
        assert caption(*output, "--report", "g.html", answer="another cat").code == 0

    assert private.read_text("utf-8") == "private"
    for name in NAMES:
        assert Path(name).is_symlink() == (kind == "link"), name
        assert Path(name).read_text("utf-8") == ("private" if kind == "link" else "mine"), name
    rows = map(json.loads, Path("o.jsonl").read_text("utf-8").splitlines())
    assert [row["caption"] for row in rows] == ["another cat", "a cat", "a cat"]
    assert not [path for path in Path().rglob(".idefics-*") if str(path) not in NAMES]
