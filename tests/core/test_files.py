"""Files that are read with a limit, and files that are written whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from idefics_cli.core.errors import UsageError
from idefics_cli.core.files import (
    check_place,
    is_unfinished,
    read_limited,
    read_regular_file,
    remove_unfinished,
    replacing,
    scratch_folder,
    unfinished_path,
    write_whole,
)
from idefics_cli.core.json_text import parse_json


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_regular_file(path, limit_bytes=5) == b"12345"
    with pytest.raises(OSError, match="too large") as caught:
        read_regular_file(path, limit_bytes=4)
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("limit", [0, 3, 5, 6, 2**60])
def test_a_read_with_a_limit_takes_memory_for_what_there_is(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    with path.open("rb") as file:
        assert read_limited(file, limit) == b"12345"[:limit]


def test_a_read_with_a_limit_goes_on_after_its_first_block(tmp_path: Path) -> None:
    path, size = tmp_path / "a", 64 * 2**20 + 5
    with path.open("wb") as file:
        file.truncate(size)
    for limit, expected in ((2**60, size), (size - 1, size - 1)):
        with path.open("rb") as file:
            assert len(read_limited(file, limit)) == expected


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_nothing_but_a_regular_file_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(OSError, match=r"(?i)not a regular file|is a directory"):
        read_regular_file(path, limit_bytes=10)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"old")

    def stop(file: BinaryIO) -> None:
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        stop(file)
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"new"}


def test_nobody_can_guess_the_name_of_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 255)
    names = {unfinished_path(path).name for _ in range(100)}
    assert len(names) == 100
    assert all(is_unfinished(name) and len(name) < 100 for name in names)
    assert not is_unfinished("a.part")


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "a"
    other.write_bytes(b"private")
    path.symlink_to(other)
    write_whole(path, b"new")
    assert (other.read_bytes(), path.read_bytes(), path.is_symlink()) == (b"private", b"new", False)


def test_what_killed_programs_left_is_removed(tmp_path: Path) -> None:
    other_host = ".idefics-00000000-00000000-{}-0000000000000000.part"
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    removed = [
        unfinished_path(tmp_path / "a", process=ended.pid),
        unfinished_path(tmp_path / "a", process=10**9),
        tmp_path / other_host.format(7),
    ]
    kept = [
        unfinished_path(tmp_path / "a"),
        unfinished_path(tmp_path / "a", process=os.getppid()),
        tmp_path / other_host.format(8),
        tmp_path / "a.part",
        tmp_path / ".idefics-mine",
    ]
    for path in removed + kept:
        path.touch()
    os.utime(removed[-1], (0, 0))
    (folder := unfinished_path(tmp_path / "b", process=10**9)).mkdir()
    (folder / "picture").touch()
    (mine := unfinished_path(tmp_path / "b")).mkdir()
    kept.append(mine)
    remove_unfinished(tmp_path)
    assert set(tmp_path.iterdir()) == set(kept)
    remove_unfinished(tmp_path / "none")


def test_a_scratch_folder_replaces_those_of_killed_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (left := unfinished_path(tmp_path / "tune", process=10**9)).mkdir()
    (left / "picture").touch()
    with scratch_folder("tune") as folder:
        assert list(tmp_path.iterdir()) == [folder]
        (folder / "picture").touch()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"1" * 5000, "4300 digits"),
        (b"\xff", "can't decode byte"),
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
    ],
    ids=lambda value: str(value[:10]),
)
def test_what_is_not_json_is_one_kind_of_error(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(content)


def test_a_file_in_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"`.*file` is not a folder"):
        check_place(tmp_path / "file" / "x.jsonl")
    with pytest.raises(UsageError, match=r"no folder `.*none`") as caught:
        check_place(tmp_path / "none" / "x.jsonl")
    assert caught.value.hint == "make the folder first"
