"""Every format stores each record as one line that can be had back."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from idefics_cli.caption.sinks import SINKS
from idefics_cli.caption.sinks.base import Sink, Target
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.types import CaptionRecord

every_sink = pytest.mark.parametrize("name", SINKS)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
WEIRD = [
    "new\nline",
    "tab\there",
    "crlf\r\n",
    "\x1b[31mred\x1b[0m",
    "bell\a nul\0 del\x7f",
    "csi\x9b31m nel\x85",
    "separators\u2028\u2029",
    "reversed\u202egpj.exe\u202c",
    "back\\slash \\n \\x41",
    "\"quoted\" 'too'",
    "Zürich 漢字 👩\u200d👧 שלום",
    " spaces ",
    "",
]
BYTES = os.fsdecode(b"caf\xe9 \xff\xfe.jpg")


class Recorder:
    """A stream in memory that counts its flushes."""

    def __init__(self) -> None:
        self.data = b""
        self.flushed = b""

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def flush(self) -> None:
        self.flushed = self.data


def record(key: str, caption: str = "a cat") -> CaptionRecord:
    return CaptionRecord(
        key, caption=caption, finish="stop", width=640, height=480, new_tokens=3, seconds=0.12345
    )


def written(name: str, records: Iterable[CaptionRecord]) -> bytes:
    stream = Recorder()
    with SINKS[name](Target(stream)) as sink:
        for each in records:
            sink.write(each)
    return stream.data


def read(name: str, data: bytes) -> list[tuple[str, str]]:
    """Return the path and caption of each line, as a script would read them back."""
    lines = data.decode().splitlines()
    if name == "jsonl":
        rows = [json.loads(line) for line in lines]
        return [(row["file_name"], row["caption"]) for row in rows]
    fields = [line.split("\t") for line in lines]
    return [(unescaped(path), unescaped(caption)) for path, caption in fields]


def unescaped(text: str) -> str:
    """Return what a field of the text format stands for, by the rule in its documentation."""

    def meaning(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] == "u":
            return chr(int(code[1:], 16))
        if code[0] == "x":
            byte = int(code[1:], 16)
            return chr(byte) if byte < 0x80 else bytes([byte]).decode("utf-8", "surrogateescape")
        return {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}[code]

    return re.sub(r"\\(x..|u....|.)", meaning, text)


@every_sink
@pytest.mark.parametrize("text", [*WEIRD, BYTES], ids=ascii)
def test_any_path_and_caption_is_one_line_and_comes_back(name: str, text: str) -> None:
    given = [record("a.jpg", text), record(f"{text}.jpg"), record("z.jpg")]

    data = written(name, given)
    assert data.count(b"\n") == 3
    assert read(name, data) == [(each.file_name, each.caption) for each in given]


@every_sink
@pytest.mark.parametrize("text", [*WEIRD, BYTES], ids=ascii)
def test_no_control_character_gets_into_the_output(name: str, text: str) -> None:
    lines = written(name, [record(text, text)]).decode()

    assert not CONTROL.search(lines)


@every_sink
def test_every_record_is_flushed_when_it_is_written(name: str) -> None:
    stream = Recorder()
    with SINKS[name](Target(stream)) as sink:
        for number in range(3):
            sink.write(record(f"{number}.jpg"))
            assert stream.flushed == stream.data
            assert stream.data.count(b"\n") == number + 1


@every_sink
def test_a_file_holds_what_stdout_would_get(name: str, tmp_path: Path) -> None:
    given = [record("a.jpg"), record("b.jpg", "two\nlines")]
    path = tmp_path / "out"
    stdout = Recorder()

    with SINKS[name](Target(stdout, path)) as sink:
        for each in given:
            sink.write(each)
    assert path.read_bytes() == written(name, given)
    assert stdout.data == b""


@every_sink
def test_a_file_that_is_there_is_kept_unless_told(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"mine")

    with pytest.raises(UsageError, match=r"`.*out` exists already") as caught:
        enter(SINKS[name](Target(Recorder(), path)))
    assert caught.value.hint == "`--overwrite` replaces it"
    assert path.read_bytes() == b"mine"

    with SINKS[name](Target(Recorder(), path, overwrite=True)) as sink:
        assert path.read_bytes() == b"mine", "nothing is lost before there is something to write"
        sink.write(record("a.jpg"))
    assert path.read_bytes() == written(name, [record("a.jpg")])


@every_sink
def test_a_file_that_appears_while_the_model_loads_is_kept_too(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out"

    with SINKS[name](Target(Recorder(), path)) as sink:
        path.write_bytes(b"another's")
        with pytest.raises(IdeficsError, match=r"cannot write `.*out`: File exists"):
            sink.write(record("a.jpg"))
        path.rename(tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == b"another's"


@every_sink
def test_a_run_that_breaks_before_the_first_caption_leaves_an_old_file_alone(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"mine")

    with pytest.raises(KeyError), SINKS[name](Target(Recorder(), path, overwrite=True)):
        raise KeyError
    assert path.read_bytes() == b"mine"


@every_sink
def test_a_run_without_captions_leaves_an_empty_file(name: str, tmp_path: Path) -> None:
    with SINKS[name](Target(Recorder(), tmp_path / "out")):
        pass
    assert (tmp_path / "out").read_bytes() == b""


@every_sink
def test_a_target_that_cannot_be_written_is_told_at_once(name: str, tmp_path: Path) -> None:
    make = SINKS[name]

    with pytest.raises(UsageError, match="it is a folder"):
        enter(make(Target(Recorder(), tmp_path)))
    with pytest.raises(UsageError, match=r"no folder `.*missing`"):
        enter(make(Target(Recorder(), tmp_path / "missing" / "out")))


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no devices here")
@every_sink
def test_a_device_is_written_though_it_exists(name: str) -> None:
    with SINKS[name](Target(Recorder(), Path("/dev/null"))) as sink:
        sink.write(record("a.jpg"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
@every_sink
def test_a_full_disk_is_an_error_that_names_the_file(name: str) -> None:
    with (
        pytest.raises(IdeficsError, match="cannot write `/dev/full`: No space left on device"),
        SINKS[name](Target(Recorder(), Path("/dev/full"))) as sink,
    ):
        sink.write(record("a.jpg"))


class Broken(Recorder):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def flush(self) -> None:
        raise self._error


@every_sink
def test_a_broken_pipe_is_left_to_the_caller_and_other_errors_are_told(name: str) -> None:
    pipe = Broken(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    with pytest.raises(BrokenPipeError), SINKS[name](Target(pipe)) as sink:
        sink.write(record("a.jpg"))

    full = Broken(OSError(errno.ENOSPC, "No space left on device"))
    with (
        pytest.raises(IdeficsError, match="cannot write stdout: No space left on device"),
        SINKS[name](Target(full)) as sink,
    ):
        sink.write(record("a.jpg"))


@every_sink
def test_a_new_output_has_nothing_completed(name: str) -> None:
    with SINKS[name](Target(Recorder())) as sink:
        assert sink.completed() == frozenset()


def test_a_line_of_text_is_path_tab_caption_and_failures_have_none() -> None:
    failed = CaptionRecord("b.jpg", error="cannot read `b.jpg`", error_kind="truncated")

    data = written("tsv", [record("a.jpg"), failed, record("c.jpg", "a dog")])
    assert data == b"a.jpg\ta cat\nc.jpg\ta dog\n"


def test_a_json_row_has_every_field_and_failures_have_a_row() -> None:
    failed = CaptionRecord("b.jpg", error="cannot read `b.jpg`", error_kind="truncated")

    data = written("jsonl", [record("a.jpg"), failed])
    assert data == (
        b'{"file_name": "a.jpg", "caption": "a cat", "status": "ok", "error": null, '
        b'"error_kind": null, "finish": "stop", "width": 640, "height": 480, "tokens": 3, '
        b'"seconds": 0.123}\n'
        b'{"file_name": "b.jpg", "caption": null, "status": "error", '
        b'"error": "cannot read `b.jpg`", "error_kind": "truncated", "finish": null, '
        b'"width": null, "height": null, "tokens": 0, "seconds": 0.0}\n'
    )


def test_a_file_name_that_is_no_text_comes_back_from_json_byte_by_byte() -> None:
    row = json.loads(written("jsonl", [record(BYTES)]))

    assert os.fsencode(row["file_name"]) == b"caf\xe9 \xff\xfe.jpg"


def enter(sink: Sink) -> None:
    with sink:
        pass
