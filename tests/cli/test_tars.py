"""`idefics caption` takes tar archives like folders, whole or damaged, in one run or in shards."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.core.types import GenerationRequest
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.outputs import contents
from tests.support.tars import make_tar


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with 4 archives of 3 samples each, as img2dataset writes them."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for number in range(4):
        make_tar(f"data/{number:05}.tar", samples(number))


def samples(number: int) -> dict[str, bytes]:
    """Return three samples, in an order that is not that of their names."""
    members: dict[str, bytes] = {}
    for sample in ("2", "0", "1"):
        key = f"{number:05}{sample}"
        members[f"{key}.jpg"] = f"picture {key}".encode()
        members[f"{key}.txt"] = f"words of {key}\n".encode()
        members[f"{key}.json"] = json.dumps({"key": key, "url": None}).encode()
    return members


def names(*numbers: int) -> list[str]:
    return [f"data/{n:05}.tar/{n:05}{sample}.jpg" for n in numbers for sample in range(3)]


def describe(request: GenerationRequest) -> str:
    return f"caption of {os.path.basename(request.attachments[0].source)}"


def caption(*arguments: str, make: Callable[[], FakeEngine] | None = None) -> Ran:
    engine = make() if make else FakeEngine(describe)
    return run("caption", *arguments, services=World(engine).services)


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def listed(ran: Ran) -> list[str]:
    return [line.partition("\t")[0] for line in ran.out.splitlines()]


def test_archives_are_named_by_folder_glob_range_list_and_member() -> None:
    Path("list.txt").write_text("data/00003.tar\ndata/00000.tar/000001.jpg\n")

    assert listed(caption("data")) == names(0, 1, 2, 3)
    assert listed(caption("data/*1.tar", "data/{00002..00003}.tar")) == names(1, 2, 3)
    assert listed(caption("data/{3..2}.tar")) == []
    assert listed(caption("--filelist", "list.txt")) == [*names(3), names(0)[1]]
    # A missing archive fails as a missing picture does.
    assert listed(caption("data/{00003..00004}.tar")) == [*names(3), "data/00004.tar"]


def test_an_archive_beside_pictures_is_not_taken_unasked() -> None:
    Path("data/a.jpg").write_bytes(b"a")
    ran = caption("data")

    assert (ran.code, listed(ran)) == (0, ["data/a.jpg"])
    assert "left out 4 archives in `data`, such as `data/00000.tar`" in ran.err


def test_a_prompt_may_have_the_words_of_the_sample() -> None:
    engine = FakeEngine(lambda request: str(request.messages[-1].text))
    ran = caption("data/00001.tar", "--prompt", "Add to: {caption} ({key})", make=lambda: engine)

    assert ran.out.splitlines()[1].endswith("Add to: words of 000011 (000011)")
    assert caption("data", "--prompt", "{capton}").err.splitlines() == [
        "error: the prompt has an unknown field `{capton}`",
        "hint: did you mean `{caption}`? `{{capton}}` is the text itself",
    ]


def test_a_run_goes_on_with_members_that_are_new_or_changed() -> None:
    assert caption("data", "-o", "out.jsonl").code == 0
    before = Path("out.jsonl").read_bytes()
    assert caption("data", "-o", "out.jsonl").err.endswith("nothing is left to caption\n")

    members = samples(2)
    members["000021.jpg"] = b"another picture"
    make_tar("data/00002.tar", {"000029.jpg": b"new", **members})
    again = caption("data", "-o", "out.jsonl")
    assert "captioned 2 of 2" in again.err, again.err
    assert [row["file_name"] for row in rows("out.jsonl")] == [
        *names(0, 1, 2),
        "data/00002.tar/000029.jpg",
        *names(3),
    ]
    assert Path("out.jsonl").read_bytes() != before


def test_a_damaged_archive_loses_none_of_its_whole_pictures() -> None:
    Path("data/00001.tar").write_bytes(Path("data/00001.tar").read_bytes()[: 512 * 9])
    Path("data/00002.tar").write_bytes(b"\x1f\x8b and more")
    Path("data/00003.tar").write_bytes(b"no archive" * 100)
    ran = caption("data", "-o", "out.jsonl")

    assert ran.code == 3
    assert [row["file_name"] for row in rows("out.jsonl")] == [
        *names(0),
        *(names(1)[0], names(1)[2]),
    ]
    for line in (
        "error: `data/00001.tar` ends in the middle of a member, after 5 members",
        "error: `data/00002.tar` is compressed: its members cannot be read one by one",
        "hint: `gunzip <data/00002.tar >plain.tar` unpacks it",
        "error: `data/00003.tar` is not a tar archive (invalid header)",
    ):
        assert line in ran.err.splitlines(), ran.err


def test_a_member_without_a_name_and_members_that_cannot_be_read_are_told() -> None:
    make_tar("data/00000.tar", {"a.png": b"1", ".png": b"2", "sub/.JPG": b"3", "._a.png": b"4"})
    with tarfile.open("data/00001.tar", "w") as tar:
        for name in ("a.png", "b.png", "c.png"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "elsewhere"
            tar.addfile(member)
    ran = caption("data/00000.tar", "data/00001.tar")
    assert listed(ran) == ["data/00000.tar/a.png"]
    assert (
        "note: left out `.png` in `data/00000.tar`: it has no name before the dot, by which a "
        "sample is known (and 1 other member like it)"
    ) in ran.err
    assert (
        "error: cannot read `a.png` in `data/00001.tar`: it is a link to what is not in the "
        "archive; 2 other pictures in it cannot be read either"
    ) in ran.err


def test_an_archive_that_is_replaced_during_the_run_fails_by_name_and_is_redone() -> None:
    def change(request: GenerationRequest) -> str:
        if not Path("done").exists():
            Path("done").touch()
            make_tar("data/00003.tar", {"more.txt": b"", **samples(3)})
        return describe(request)

    ran = caption("data", "-o", "out.jsonl", "--batch-size", "1", make=lambda: FakeEngine(change))
    assert ran.code == 3
    assert "its archive has changed" in ran.err
    assert "run the same command again when the archive is whole" in ran.err
    again = caption("data", "-o", "out.jsonl")
    assert again.code == 0, again.err
    assert [(row["file_name"], row["status"]) for row in rows("out.jsonl")] == [
        (name, "ok") for name in names(0, 1, 2, 3)
    ]


@pytest.mark.parametrize("count", [1, 3, 16])
def test_shards_divide_archives_and_collect_gives_the_rows_of_one_run(count: int) -> None:
    for folder in ("whole", "parts"):
        Path(folder).mkdir()
    assert caption("data", "-o", "whole/out.jsonl").code == 0
    for index in range(count):
        ran = caption("data", "-o", "parts/out.jsonl", "--shard", f"{index}/{count}")
        assert ran.code == 0, ran.err
        found = [row["file_name"] for row in rows(f"parts/out-{index:05}-of-{count:05}.jsonl")]
        assert len(found) % 3 == 0
        if count == 3 and found:
            assert f"{len(found)} pictures in {len(found) // 3} of 4 files" in ran.err
    ran = run("collect", "parts/out.jsonl")

    assert ran.code == 0, ran.err
    assert "files changed" not in ran.err
    assert contents(Path("parts"))["out.jsonl"] == contents(Path("whole"))["out.jsonl"]


def test_no_file_of_a_run_replaces_an_archive_or_lies_in_it() -> None:
    before = Path("data/00000.tar").read_bytes()
    for arguments, message in (
        (("-f", "jsonl", "-o", "data/00000.tar", "--overwrite"), "is an archive of this run"),
        (("-f", "txt"), "has no folder to put a caption file in"),
        (("-o", "metadata.jsonl"), "is in an archive"),
    ):
        ran = caption("data", *arguments)
        assert (ran.code, message in ran.err) == (2, True), ran.err
    assert caption("data", "-f", "txt", "-o", "out").code == 0
    assert Path("out/00000.tar/000001.txt").read_text() == "caption of 000001.jpg\n"
    assert Path("data/00000.tar").read_bytes() == before


def test_a_half_downloaded_archive_and_repeated_names_are_noted() -> None:
    Path("data/00000.parquet").touch()
    make_tar("data/00001.tar", {"./a.jpg": b"1", "a.jpg": b"2", "._a.jpg": b"3"})
    ran = caption("data")

    assert "`data/00000.tar` has no `00000_stats.json`: img2dataset may not be done" in ran.err
    assert "note: 1 name in `data/00001.tar` is there again; the last member counts" in ran.err
    assert "data/00001.tar/a.jpg" in listed(ran)
    assert len(listed(ran)) == 10
