"""Files that are read with a limit."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from idefics_cli.core.files import read_regular_file
from idefics_cli.core.json_text import parse_json


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_regular_file(path, limit_bytes=5) == b"12345"
    with pytest.raises(OSError, match="too large") as caught:
        read_regular_file(path, limit_bytes=4)
    assert caught.value.errno == errno.EFBIG


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
