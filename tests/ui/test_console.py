"""The output of a console to terminals and to pipes."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator

import pytest

from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import TokenChunk
from idefics_cli.ui.chat.markdown import MarkdownStream
from idefics_cli.ui.terminal.console import Console, to_json
from idefics_cli.ui.terminal.stream import show_stream
from tests.support.commands import Stream


def made(
    *,
    terminal: bool = False,
    encoding: str = "utf-8",
    quiet: bool = False,
    slow_seconds: float = 60.0,
) -> Console:
    out, err = Stream(terminal=terminal, encoding=encoding), Stream(terminal=terminal)
    return Console(out, err, quiet=quiet, environ={"NO_COLOR": "1"}, slow_seconds=slow_seconds)


def text(stream: object) -> str:
    assert isinstance(stream, Stream)
    return stream.text()


def test_data_is_verbatim_in_a_pipe_and_printable_on_a_terminal() -> None:
    raw = "a\x1b[2Jb\r\n"
    pipe, terminal = made(), made(terminal=True)
    pipe.data(raw)
    terminal.data(raw)
    assert text(pipe.out) == raw
    assert text(terminal.out) == "a␛[2Jb\n"


def test_a_name_that_is_no_text_goes_to_a_pipe_byte_by_byte() -> None:
    console = made()
    console.line(b"x\xff\xfe.png".decode("utf-8", "surrogateescape"))
    assert text(console.out).encode("utf-8", "surrogateescape") == b"x\xff\xfe.png\n"


def test_what_the_encoding_lacks_is_escaped() -> None:
    console = made(encoding="ascii")
    console.line("é ☃")
    assert text(console.out) == "\\xe9 \\u2603\n"


@pytest.mark.parametrize("value", ["é☃", 'a\n\x1b"\\', "\udcff", "😀", {"k": [1, None, 0.5]}])
def test_json_reads_back_and_is_one_line_of_valid_utf_8(value: object) -> None:
    line = to_json(value)
    assert json.loads(line) == value
    assert "\n" not in line
    line.encode("utf-8")


def test_messages_go_to_stderr_each_on_a_line_of_its_own() -> None:
    console = made()
    console.note("a\nb")
    console.warn("c")
    console.tell("d\te")
    console.error(IdeficsError("bad `x\x1b`", hint="do\nthis"))
    assert text(console.out) == ""
    assert text(console.err) == "note: a␊b\nwarning: c\nd\te\nerror: bad `x␛`\nhint: do␊this\n"


def test_quiet_leaves_errors_only() -> None:
    console = made(quiet=True)
    console.note("a")
    console.warn("b")
    console.tell("c")
    console.error(IdeficsError("d"))
    assert text(console.err) == "error: d\n"


def test_labels_are_coloured_on_a_terminal_unless_no_color() -> None:
    def error_on_terminal(**environ: str) -> str:
        err = Stream(terminal=True)
        Console(Stream(terminal=True), err, environ=environ).error(IdeficsError("x"))
        return err.text()

    assert error_on_terminal() == "\x1b[1;31merror:\x1b[0m x\n"
    assert error_on_terminal(NO_COLOR="1") == "error: x\n"
    assert error_on_terminal(TERM="dumb") == "error: x\n"


def wait_for(shown: str, console: Console | None) -> None:
    """Wait until *console* shows *shown*; without a console, wait for a fixed time."""
    end = time.monotonic() + (10 if console else 0.1)
    while time.monotonic() < end and not (console and shown in text(console.err)):
        time.sleep(0.01)
    assert console is None or shown in text(console.err)


def test_a_spinner_is_shown_only_when_slow_and_only_on_a_terminal() -> None:
    pipe = made(slow_seconds=0.02)
    quiet = made(terminal=True, quiet=True, slow_seconds=0.02)
    slow = made(terminal=True, slow_seconds=0.02)
    for console in (pipe, quiet, slow):
        with console.status("loading\x1b") as progress:
            wait_for("loading", slow if console is slow else None)
            progress("the weights", 0.5)
            wait_for("the weights 50%", slow if console is slow else None)
    assert text(pipe.err) == text(quiet.err) == ""
    assert "loading␛" in text(slow.err)
    fast = made(terminal=True)
    with fast.status("loading"):
        pass
    assert text(fast.err) == ""


def chunks(*texts: str) -> list[TokenChunk]:
    made = [TokenChunk(t, i + 1) for i, t in enumerate(texts)]
    return [*made, TokenChunk("", len(made) + 1, "stop")]


@pytest.mark.parametrize(
    "texts",
    [("A cat", " sat.", ""), ("", "", "x"), (), ("a\r", "\nb"), ("a\r", "b"), ("\x1b", "[31m")],
)
def test_a_stream_shows_what_the_whole_answer_would_show(texts: tuple[str, ...]) -> None:
    console, whole = made(terminal=True), made(terminal=True)
    last = show_stream(console, iter(chunks(*texts)))
    whole.line("".join(texts))
    assert text(console.out) == text(whole.out)
    assert last.finish == "stop"


def test_a_piece_is_shown_before_the_next_is_made() -> None:
    console = made(terminal=True)

    def stream() -> Iterator[TokenChunk]:
        yield TokenChunk("a", 1)
        assert text(console.out) == "a"
        yield TokenChunk("b", 2)
        assert text(console.out) == "ab"
        yield TokenChunk("", 3, "stop")

    show_stream(console, stream())


def test_what_was_shown_before_an_error_stays_on_its_line() -> None:
    console, silent = made(terminal=True), made(terminal=True)

    def broken(*before: str) -> Iterator[TokenChunk]:
        yield from (TokenChunk(t, 1) for t in before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show_stream(console, broken("half an", " answer"))
    with pytest.raises(KeyboardInterrupt):
        show_stream(silent, broken())
    assert text(console.out) == "half an answer\n"
    assert text(silent.out) == ""


def test_no_colour_is_one_that_a_white_or_a_black_ground_swallows() -> None:
    console = Console(Stream(terminal=True), Stream(terminal=True), environ={})
    console.error(IdeficsError("a", hint="b"))
    console.warn("c")
    console.note("d")
    shown = MarkdownStream(styled=True)
    markdown = shown.feed("# A\n`b` **c** *d*\n> e\n\n```\nf\n```\n") + shown.close()
    codes = re.findall(r"\x1b\[([\d;]*)m", text(console.err) + markdown)
    assert len(codes) > 8
    # Green, yellow, blue, cyan, white, and the bright ones.
    unfit = {"32", "33", "34", "36", "37", *map(str, range(90, 98))}
    assert unfit.isdisjoint(number for code in codes for number in code.split(";"))


def test_a_question_says_what_it_takes_and_ctrl_c_ends_its_line() -> None:
    class Impatient(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            if line := super().readline(size):
                return line
            raise KeyboardInterrupt

    console = made(terminal=True)
    with pytest.raises(KeyboardInterrupt):
        console.ask("Download it?", Impatient(b"perhaps\n"))
    question = "Download it? [Y/n] "
    assert text(console.err) == f"{question}y or Enter is yes, n is no\n{question}\n"
