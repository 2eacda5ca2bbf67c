"""Text on stdin: limits of size and time, and refused data."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from pathlib import Path

import pytest

from idefics_cli.cli.stdin import MAX_TEXT_BYTES, piped_text
from idefics_cli.core.errors import PromptError
from idefics_cli.ui.terminal.console import Console
from tests.support.commands import Stream, Terminal


def console() -> Console:
    return Console(Stream(terminal=False), Stream(terminal=False))


def text_of(data: bytes) -> str:
    return piped_text(io.BytesIO(data), console(), silence_seconds=1)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"What?\n", "What?"),
        (b"What?\r\n", "What?"),
        (b"What?\n\n", "What?\n"),
        (b" a \n b ", " a \n b "),
        ("Où ☃?".encode(), "Où ☃?"),
        (b"\xef\xbb\xbfWhat?", "What?"),
        (b"\n", ""),
    ],
)
def test_text_comes_as_it_is_but_for_the_newline_that_ends_it(data: bytes, text: str) -> None:
    assert text_of(data) == text


def test_a_terminal_and_a_closed_stdin_give_no_text() -> None:
    closed = io.BytesIO()
    closed.close()
    for stream in (None, closed, Terminal(b"typed")):
        assert piped_text(stream, console(), silence_seconds=1) == ""


def test_dev_null_gives_no_text() -> None:
    with Path(os.devnull).open("rb") as null:
        assert piped_text(null, console(), silence_seconds=60) == ""


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n....", b"\xff\xd8\xff\xe0", b"GIF89a", b"a\0b", b"RIFF\0\0\0\0WEBP"]
)
def test_a_picture_on_stdin_is_refused_as_text(data: bytes) -> None:
    with pytest.raises(PromptError) as caught:
        text_of(data)
    assert str(caught.value) == "stdin holds binary data, not text"
    assert caught.value.hint == "`-i -` takes a picture from stdin"


def test_other_encodings_are_refused_with_the_place() -> None:
    with pytest.raises(PromptError) as caught:
        text_of("Où?".encode("latin-1"))
    assert str(caught.value) == "the text on stdin is not UTF-8 (byte 2)"


def test_a_flood_of_text_is_refused_without_reading_it_all() -> None:
    class Flood(io.RawIOBase):
        served = 0

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            assert size > 0
            self.served += size
            return b"y" * size

    flood = Flood()
    with pytest.raises(PromptError, match="longer than 4,000,000 bytes"):
        piped_text(flood, console(), silence_seconds=1)  # type: ignore[arg-type]  # it has the methods that piped_text calls
    assert flood.served < MAX_TEXT_BYTES + 100_000
    assert len(text_of(b"y" * MAX_TEXT_BYTES)) == MAX_TEXT_BYTES


def test_an_open_but_silent_pipe_ends_in_an_error() -> None:
    reader, writer = os.pipe()
    told = console()
    started = time.monotonic()
    # After 20 s the pipe is closed, so that an endless wait fails and does not hang.
    closing = threading.Timer(20, os.close, [writer])
    closing.start()
    try:
        with os.fdopen(reader, "rb") as stream, pytest.raises(PromptError) as caught:
            piped_text(stream, told, silence_seconds=0.2, notice_seconds=0.05)
    finally:
        closing.cancel()
        closing.join()
        with contextlib.suppress(OSError):
            os.close(writer)
    assert 0.2 <= time.monotonic() - started < 10
    assert str(caught.value) == "stdin is open, but no text came for 0.2 seconds"
    err = told.err
    assert isinstance(err, Stream)
    assert err.text() == "note: waiting for text on stdin; add `</dev/null` if there is none\n"


@pytest.mark.parametrize("silence_seconds", [30.0, None])
def test_a_slow_writer_is_waited_for(silence_seconds: float | None) -> None:
    reader, writer = os.pipe()

    def write() -> None:
        time.sleep(0.1)
        os.write(writer, b"slow ")
        time.sleep(0.1)
        os.write(writer, b"text\n")
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reader, "rb") as stream:
        text = piped_text(stream, console(), silence_seconds=silence_seconds, notice_seconds=0.01)
    assert text == "slow text"
    thread.join()
