"""No file of a run replaces another one, a picture, a pipe or a device."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from idefics_cli.caption.distinct_files import check_distinct
from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.errors import ImageError, UsageError
from idefics_cli.core.types import Attachment, GenerationRequest
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine


def answer(request: GenerationRequest) -> str:
    if request.attachments[0].source.endswith("b.png"):
        raise ImageError("cannot read `p/b.png`: it is text", kind="not_an_image")
    return "a cat"


@pytest.fixture(autouse=True)
def pictures(here: Path) -> None:
    Path("p").mkdir()
    for name in ("a.png", "b.png"):
        Path("p", name).write_text(name)


def caption(line: str) -> Ran:
    return run("caption", "p", *line.split(), services=World(FakeEngine(answer)).services)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-o o.jsonl --failures o.jsonl", "`o.jsonl` cannot be both the output and the list of fa"),
        ("-o o.jsonl --failures x/../o.jsonl", "cannot be both the output and the list of fail"),
        ("-o o.jsonl --failures link", "`link`: it is a link to a file that is missing"),
        ("-o o.jsonl --failures o.jsonl.journal", "cannot be both"),
        ("-o o.jsonl --failures o.jsonl.run.json", "cannot be both"),
        ("-o o.jsonl --report o.jsonl --overwrite", "cannot be both the output and the report"),
        ("-o o.jsonl --report o.jsonl.journal --overwrite", "cannot be both"),
        ("-o o.jsonl --report o.jsonl.failures.txt --overwrite", "cannot be both"),
        ("-o o.jsonl --report g.html --failures g.html", "cannot be both"),
        ("--report g.html --failures g.html", "cannot be both"),
        ("-f txt --failures idefics-caption.journal", "cannot be both"),
        ("-o o.jsonl --failures p/a.png", "`p/a.png` is a picture of this run, and cannot be the"),
        ("--failures p/a.png", "`p/a.png` is a picture of this run, and cannot be the list of"),
        ("-o o.jsonl --report p/b.png --overwrite", "cannot be the report"),
        ("-f jsonl -o p/b.png --overwrite", "cannot be the output"),
    ],
)
def test_a_file_with_two_purposes_is_refused(line: str, message: str) -> None:
    Path("link").symlink_to("o.jsonl")
    # The files of a run without text files are beside the output, those of text files here.
    line = line.replace("idefics-caption", "p/idefics-caption")
    before = {path: path.read_bytes() for path in Path("p").iterdir()}
    for more in ("", " --dry-run"):
        ran = caption(line + more)
        assert (ran.code, message in ran.err) == (2, True), ran.err
    assert {path: path.read_bytes() for path in Path("p").iterdir()} == before
    assert sorted(os.listdir()) == ["link", "p"]


def test_a_link_beside_the_output_is_not_followed() -> None:
    Path("private").write_text("private")
    Path("o.jsonl.failures.txt").symlink_to("private")
    assert caption("-o o.jsonl").code == 3
    assert (Path("private").read_text(), Path("o.jsonl.failures.txt").is_symlink()) == (
        "private", False,
    )  # fmt: skip


def test_a_report_is_no_pipe() -> None:
    os.mkfifo("pipe")
    for more in ("", " --overwrite"):
        ran = caption(f"-o o.jsonl --report pipe{more}")
        assert ran.err == "error: cannot write `pipe`: a report needs a file, not a device or a " \
            "pipe\n"  # fmt: skip
    assert Path("pipe").is_fifo()


def test_hard_links_are_one_file(tmp_path: Path) -> None:
    picture, other = tmp_path / "a.png", tmp_path / "a.csv"
    picture.write_bytes(b"picture")
    os.link(picture, other)
    with pytest.raises(UsageError, match="is a picture of this run, and cannot be the output"):
        check_distinct({"the output": other}, [CaptionItem("a.png", Attachment(str(picture)))])
    with pytest.raises(UsageError, match="cannot be both the list and the output"):
        check_distinct({"the list": picture, "the output": other}, [])
    check_distinct({"the output": other}, [CaptionItem("u", Attachment("https://x/a\0.png"))])
