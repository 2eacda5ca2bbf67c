"""A file that exists is continued, appended to, or left alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.sinks import SINKS
from idefics_cli.caption.sinks.base import Existing, Target
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.types import Attachment, CaptionRecord
from tests.support.outputs import (
    NON_UTF8_NAME,
    Recorder,
    enter,
    every_sink,
    record,
    write_records,
    written_bytes,
)


@every_sink
def test_a_position_is_the_size_of_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with SINKS[name](Target(Recorder(), path)) as sink:
        assert sink.position() == 0
        for number in range(3):
            sink.write(record(f"{number}.jpg", "Zürich\n漢"))
            assert sink.position() == path.stat().st_size


@every_sink
@pytest.mark.parametrize("torn", [b"", b'{"file_name": "x', b"whole but not in the journal\n"])
@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_resumed_file_is_that_of_one_run(
    name: str, done: int, torn: bytes, tmp_path: Path
) -> None:
    given = [record("a.jpg"), record("b.jpg", "two\nlines"), record("c.jpg")]
    path = tmp_path / "out"
    positions = write_records(name, Target(Recorder(), path), given[:done])
    with path.open("ab") as file:
        file.write(torn)

    write_records(name, Target(Recorder(), path, resume_at=positions[-1]), given[done:])
    assert path.read_bytes() == written_bytes(name, given)


@every_sink
def test_a_torn_tail_is_cut_off_even_if_nothing_is_left_to_do(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    (_, end) = write_records(name, Target(Recorder(), path), [record("a.jpg")])
    whole = path.read_bytes()
    path.write_bytes(whole + b"torn")

    write_records(name, Target(Recorder(), path, resume_at=end), [])
    assert path.read_bytes() == whole


@every_sink
def test_a_file_that_lost_rows_is_not_gone_on_with(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"short")

    with pytest.raises(UsageError, match="rows are missing that the last run wrote"):
        enter(SINKS[name](Target(Recorder(), path, resume_at=6)))
    assert path.read_bytes() == b"short"


@every_sink
def test_a_stream_has_no_position(name: str) -> None:
    assert write_records(name, Target(Recorder()), [record("a.jpg")]) == [None, None]
    if os.path.exists("/dev/null"):
        target = Target(Recorder(), Path("/dev/null"))
        assert write_records(name, target, [record("a.jpg")]) == [None, None]


@every_sink
def test_appending_gives_what_one_run_would(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    target = Target(Recorder(), path, existing="append")
    write_records(name, target, [record("a.jpg")])
    write_records(name, target, [record("b.jpg")])
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # as some editors leave it
    write_records(name, target, [record("c.jpg")])

    assert path.read_bytes() == written_bytes(name, [record(f"{each}.jpg") for each in "abc"])


@every_sink
def test_skipping_leaves_out_what_has_a_caption_in_the_file(name: str, tmp_path: Path) -> None:
    keys = [str(tmp_path / each) for each in ("a.jpg", 'b,\n\t"\\.jpg', NON_UTF8_NAME, "c.jpg")]
    pictures = [CaptionItem(key, Attachment(key)) for key in [*keys, "elsewhere.jpg"]]
    target = Target(Recorder(), tmp_path / "out", existing="skip", pictures=pictures)
    failure = CaptionRecord(keys[3], error="no", error_kind="missing")
    write_records(name, target, [*map(record, keys[:3]), failure])

    with SINKS[name](target) as sink:
        assert sink.completed() == set(keys[:3])


@pytest.mark.parametrize("existing", ["append", "skip"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("tsv", b"no tab\n"), ("jsonl", b"{}\n"), ("jsonl", b"torn"), ("csv", b"file,text\na,b\n")],
)
def test_another_kind_of_file_is_not_written_behind(
    name: str, content: bytes, existing: Existing, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    path.write_bytes(content)

    with pytest.raises(UsageError, match=r"cannot continue `.*out`: "):
        write_records(name, Target(Recorder(), path, existing=existing), [record("a.jpg")])
    assert path.read_bytes() == content


@every_sink
def test_nothing_is_put_before_the_rows_of_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`--existing prepend` is for files of one caption each"):
        enter(SINKS[name](Target(Recorder(), tmp_path / "out", existing="prepend")))


@every_sink
def test_a_disk_that_fills_up_in_a_row_leaves_the_rows_before(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write_ = tmp_path / "out", os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_(descriptor, data[:9])

    with SINKS[name](Target(Recorder(), path)) as sink:
        sink.write(record("a.jpg"))
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(IdeficsError, match="No space left"):
            sink.write(record("b.jpg"))
        monkeypatch.undo()
        assert path.read_bytes() == before
        sink.write(record("b.jpg"))
    assert path.read_bytes() == written_bytes(name, [record("a.jpg"), record("b.jpg")])
