"""The file names in the rows of a run find the same pictures again, whatever the names."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from idefics_cli.caption.inputs.discover import discover
from idefics_cli.caption.inputs.lists import read_list
from idefics_cli.caption.resume.run_files import write_failures
from idefics_cli.caption.sinks.base import Target
from idefics_cli.core.escapes import NOT_UTF8, UNSAFE_IN_TEXT, escaped_name, plain_name
from tests.support.commands import World, run
from tests.support.fakes import FakeEngine
from tests.support.outputs import Recorder, record, write_records

linux_names = pytest.mark.skipif(os.name == "nt", reason="such names are not allowed here")
# Characters that a row, a list, an escape or a terminal treats in its own way.
PIECES = (
    *(
        "a",
        "b ",
        "x41",
        "u202e",
        "xff",
        "\\",
        "\\\\",
        "\\x1b",
        "\\u0085",
        "\\n",
        '"',
        "'",
        ",",
        ";",
    ),
    *("\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\u2028", "\u202e", "\u2066", "\ufeff", "é", "日"),
    *("\udcff", "\udc80", "\udce9", "~", "{", "}", "[", "*", "%41", "$a", "-", ":", "file:", " "),
)


def odd_names(count: int) -> Iterator[str]:
    """Yield *count* different names of files."""
    random_ = random.Random(7)
    seen = set[bytes]()
    while len(seen) < count:
        name = "".join(random_.choice(PIECES) for _ in range(random_.randint(1, 6))) + ".jpg"
        # Some bytes are UTF-8 when they stand together. Such a name is read as another one.
        if os.fsencode(name) not in seen and os.fsdecode(os.fsencode(name)) == name:
            seen.add(os.fsencode(name))
            yield name


@pytest.mark.parametrize("unsafe", [UNSAFE_IN_TEXT, NOT_UTF8])
def test_a_name_comes_back_and_no_two_names_are_written_alike(unsafe: object) -> None:
    pattern = UNSAFE_IN_TEXT if unsafe is UNSAFE_IN_TEXT else NOT_UTF8
    names = list(odd_names(10_000))
    written = [escaped_name(name, pattern) for name in names]

    assert [plain_name(text) for text in written] == names
    assert len(set(written)) == len(names)
    assert not any(pattern.search(text) for text in written)


@linux_names
@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_many_odd_names_are_found_again_by_the_list_of_their_rows(name: str, here: Path) -> None:
    names = list(odd_names(400))
    os.mkdir("photos")
    for each in names:
        Path("photos", each).touch()
    found = discover(["photos"]).pictures
    assert {picture.key for picture in found} == {f"photos/{each}" for each in names}

    path = Path(f"photos/rows.{name}")
    write_records(name, Target(Recorder(), path), [record(picture.key) for picture in found])
    path.read_text("utf-8")
    again = discover([], lists=[read_list(str(path))]).pictures
    assert [picture.key for picture in again] == [picture.key for picture in found]
    assert all(os.path.samefile(picture.attachment.source, picture.key) for picture in again)


@linux_names
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_the_list_of_another_program_is_taken_as_it_is_written(ending: str, here: Path) -> None:
    names = [r"dir\xab.jpg", r"a\\b.jpg", r"\u0041.jpg"]
    for each in names:
        Path(each).touch()
    rows = {
        "csv": ["file_name,x", *(f"{each},1" for each in names)],
        "jsonl": [json.dumps({"file_name": each}) for each in names],
    }
    Path(f"list.{ending}").write_text("\n".join(rows[ending]), "utf-8")
    listed = discover([], lists=[read_list(f"list.{ending}")]).pictures
    assert [picture.key for picture in listed] == names


@linux_names
def test_the_list_of_failures_finds_every_name_again(here: Path) -> None:
    os.mkdir("p")
    names = [name for name in odd_names(800) if "\n" not in name]
    for ends in (["a.jpg\r"], ["a.jpg\n"], []):
        keys = [f"p/{name}" for name in [*names, *ends]]
        for key in keys:
            Path(key).touch()
        write_failures(Path("failed.txt"), keys)
        is_null = b"\0" in Path("failed.txt").read_bytes()
        listed = discover([], lists=[read_list("failed.txt", null=is_null)]).pictures
        assert [picture.key for picture in listed] == keys


@linux_names
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_run_over_the_rows_of_a_run_captions_the_same_pictures(ending: str, here: Path) -> None:
    os.mkdir("photos")
    for each in odd_names(200):
        Path("photos", each).write_bytes(os.fsencode(each))
    asked: list[str] = []

    def answer(request: object) -> str:
        return "x"

    for arguments in (
        ["photos", "-o", f"photos/o.{ending}"],
        ["--filelist", f"photos/o.{ending}", "-o", f"photos/again.{ending}"],
    ):
        ran = run("caption", *arguments, services=World(FakeEngine(answer)).services)
        assert (ran.code, "error" in ran.err) == (0, False)
        asked.append(Path(arguments[-1]).read_text("utf-8"))
    assert asked[0] == asked[1]
