"""A log of lines: a torn line is left out, a failed line leaves nothing, one process writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from idefics_cli.core.append_log import AppendLog, read_lines

LINES = (b"one\n", b"two two\n", b"three\n")


def open_log(path: Path, *, is_locked: bool = True) -> AppendLog:
    return AppendLog(path, creates=True, is_locked=is_locked, is_synced=True)


def write(path: Path, *lines: bytes) -> int:
    log, size = open_log(path), 0
    for line in lines:
        size = log.append(line, at=size)
    log.close()
    return size


def test_lines_are_read_as_they_were_appended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert write(path, *LINES) == 18
    assert path.read_bytes() == b"".join(LINES)
    assert list(read_lines(path)) == [(0, LINES[0]), (4, LINES[1]), (12, LINES[2])]


@pytest.mark.parametrize("length", range(19))
def test_of_a_file_that_was_torn_anywhere_the_whole_lines_are_left(
    length: int, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    write(path, *LINES)
    os.truncate(path, length)
    whole = [line for end, line in ((4, LINES[0]), (12, LINES[1]), (18, LINES[2])) if end <= length]
    assert [line for _, line in read_lines(path)] == whole
    log = open_log(path)
    size = log.append(b"next\n", at=sum(map(len, whole)))
    log.close()
    assert path.read_bytes() == b"".join(whole) + b"next\n"
    assert size == path.stat().st_size


def test_bytes_after_the_last_line_that_counts_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, *LINES)
    log = open_log(path)
    log.cut(12)
    assert path.read_bytes() == b"one\ntwo two\n"
    assert log.append(b"2\n", at=4) == 6
    assert path.read_bytes() == b"one\n2\n"
    log.close()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_line_that_cannot_be_written_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    log = open_log(path)
    size = log.append(LINES[0], at=0)
    real_write = os.write

    def fail(descriptor: int, data: bytes) -> int:
        if len(data) < 4:
            raise error
        return real_write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(type(error)):
        log.append(LINES[1], at=size)
    monkeypatch.undo()
    assert path.read_bytes() == LINES[0]
    log.append(LINES[2], at=size)
    assert path.read_bytes() == LINES[0] + LINES[2]
    log.close()


def test_a_file_that_was_removed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = open_log(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="removed while it was open"):
        log.append(LINES[0], at=0)
    log.close()


def test_a_log_that_must_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AppendLog(tmp_path / "log", creates=False, is_locked=True, is_synced=False)
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time_has_a_locked_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    program = (
        "import sys, pathlib; from idefics_cli.core.append_log import AppendLog;"
        "AppendLog(pathlib.Path(sys.argv[1]), creates=True, is_locked=True, is_synced=False)"
    )

    def try_to_open() -> str:
        command = [sys.executable, "-c", program, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    log = open_log(path)
    assert "BlockingIOError" in try_to_open()
    log.close()
    log.close()
    assert try_to_open() == ""
    unlocked = open_log(path, is_locked=False)
    assert try_to_open() == ""
    unlocked.close()
    with pytest.raises(ValueError, match="closed"):
        log.append(b"x\n", at=0)
