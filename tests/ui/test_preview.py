"""Pictures in the terminal: the graphics that it reports, and the bytes that it gets."""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest
from PIL import Image

pty = pytest.importorskip("pty")  # no pseudo-terminals on Windows

from idefics_cli.ui.chat.preview import Previews  # noqa: E402 (after the skip)
from idefics_cli.ui.terminal.console import Console  # noqa: E402 (after the skip)
from idefics_cli.ui.terminal.graphics import (  # noqa: E402 (after the skip)
    Graphics,
    TerminalReply,
    ask_terminal,
    draw_graphics,
)
from tests.support.commands import Stream  # noqa: E402 (after the skip)
from tests.support.keyboard import Terminal  # noqa: E402 (after the skip)

KITTY = "\x1b_Gi=31;OK\x1b\\"
NO_KITTY = "\x1b_Gi=31;ENOTSUPPORTED:no\x1b\\"


def picture() -> Image.Image:
    image = Image.new("RGB", (64, 48), "red")
    image.paste("blue", (0, 24, 64, 48))
    return image


@contextmanager
def emulator(answer: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """Yield a terminal, also as stdin, that answers the first query."""
    controller, terminal = pty.openpty()

    def run() -> None:
        asked = b""
        while not asked.endswith(b"\x1b[c"):
            asked += os.read(controller, 1024)
        os.write(controller, answer.encode())

    thread = threading.Thread(target=run)
    with open(os.dup(terminal)) as keyboard, open(terminal, "w") as screen:
        monkeypatch.setattr(sys, "stdin", keyboard)
        thread.start()
        yield screen
        thread.join()
    os.close(controller)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (f"{KITTY}\x1b[?62;c", TerminalReply("kitty")),
        (f"{NO_KITTY}\x1b[?62;c", TerminalReply()),
        ("\x1b[?62;4;22c", TerminalReply("sixel")),
        ("\x1b[?64;14;24c", TerminalReply()),
        # WezTerm has both, but not the placeholders of kitty.
        (f"{KITTY}\x1b[?65;4;6c", TerminalReply("sixel")),
        # The user types at the same time.
        (f"What{KITTY} is\x1b[D th\r\x1b[?62;c", TerminalReply("kitty", "What is th\n")),
    ],
)
def test_a_terminal_is_asked_what_it_can_and_no_key_is_lost(
    answer: str, found: TerminalReply, monkeypatch: pytest.MonkeyPatch
) -> None:
    with emulator(answer, monkeypatch) as terminal:
        assert ask_terminal(terminal, {"TERM": "xterm-256color"}, timeout_seconds=10) == found


def test_a_terminal_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    with emulator("", monkeypatch) as terminal:
        assert ask_terminal(terminal, {}, timeout_seconds=0.05) == TerminalReply()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"TERM_PROGRAM": "iTerm.app"}, TerminalReply("iterm2")),
        ({"LC_TERMINAL": "iTerm2"}, TerminalReply("iterm2")),  # over ssh
        ({"TERM": "linux"}, TerminalReply()),
    ],
)
def test_some_terminals_need_not_be_asked(environ: dict[str, str], found: TerminalReply) -> None:
    screen = io.StringIO()
    assert ask_terminal(screen, environ) == found
    assert screen.getvalue() == ""


def test_in_tmux_what_iterm2_can_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"TMUX": "1", "LC_TERMINAL": "iTerm2", "TERM": "tmux-256color"}
    with emulator("\x1b[?1;2c", monkeypatch) as terminal:
        assert ask_terminal(terminal, environ, timeout_seconds=10) == TerminalReply()


def drawn(graphics: Graphics) -> str:
    """Return the output for a terminal that does not report its size in pixels."""
    controller, number = pty.openpty()
    try:
        with open(number, "w") as terminal:
            return draw_graphics(picture(), graphics, columns=20, rows=8, terminal=terminal)
    finally:
        os.close(controller)


def test_kitty_gets_the_picture_and_its_places() -> None:
    sent = drawn("kitty")
    chunks = re.findall(r"\x1b_Gi=(\d+),m=([01]),f=100,q=2;([^\x1b]+)\x1b\\", sent)
    image = Image.open(io.BytesIO(base64.b64decode("".join(data for _, _, data in chunks))))
    assert image.size == (200, 160)
    assert [image.convert("RGB").getpixel((9, y)) for y in (0, 159)] == [(255, 0, 0), (0, 0, 255)]
    assert f"\x1b_Ga=p,i={chunks[0][0]},c=20,r=8,U=1,q=2\x1b\\" in sent
    number = int(chunks[0][0])
    red, green, blue = number >> 16 & 255, number >> 8 & 255, number & 255
    assert sent.count(f"\x1b[38;2;{red};{green};{blue}m\U0010eeee") == 8
    assert sent.count("\U0010eeee") == 20 * 8


def test_sixels_are_drawn_over_as_many_lines_as_they_take() -> None:
    sent = drawn("sixel")
    assert sent.startswith(f"{' ' * 20}\n" * 8)
    match = re.search(r"\x1bP[\d;]*q\"1;1;(\d+);(\d+)", sent)
    assert match is not None
    assert match.groups() == ("200", "160")
    assert sent.endswith("\x1b\\\x1b8")


def test_iterm2_gets_a_file_in_one_sequence() -> None:
    sent = drawn("iterm2")
    match = re.fullmatch(
        r"\x1b\]1337;File=inline=1;size=(\d+);width=20;height=8;preserveAspectRatio=0:(.+)\x07\n",
        sent,
    )
    assert match is not None
    file = base64.b64decode(match[2])
    assert len(file) == int(match[1])
    assert Image.open(io.BytesIO(file)).tobytes() == picture().tobytes()


@pytest.mark.parametrize("graphics", ["kitty", "sixel", "iterm2"])
def test_graphics_go_to_stderr_alone_and_ask_nothing(
    graphics: Graphics, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = Stream(terminal=True), Stream(terminal=True)
    for name in [name for name in sys.modules if name.startswith("textual_image")]:
        monkeypatch.delitem(
            sys.modules, name
        )  # it is imported again, and queries the terminal then
    monkeypatch.setattr(sys, "__stdout__", out)
    console = Console(out, err, environ={"TERM": "xterm-256color"})
    Previews(console, graphics=graphics).show(picture())
    assert out.text() == ""
    assert err.text() != ""
    assert "\x1b[16t" not in err.text()
    assert "\x1b[c" not in err.text()
    assert sys.__stdout__ is out


@pytest.mark.parametrize("graphics", ["kitty", "sixel"])
def test_without_the_extra_half_blocks_are_drawn_and_it_is_named_once(
    graphics: Graphics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "textual_image", None)
    drawn = []
    for known in (None, graphics):
        err = Stream(terminal=True)
        console = Console(Stream(terminal=True), err, environ={"TERM": "xterm-256color"})
        previews = Previews(console, graphics=known)
        previews.show(picture())
        previews.show(picture())
        drawn.append(err.text())
    half_blocks, said = drawn
    once = half_blocks[: len(half_blocks) // 2]
    assert said.startswith(once)
    assert said.endswith(once)
    assert said.count("idefics-cli[preview]") == 1


def test_iterm2_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textual_image", None)
    err = Stream(terminal=True)
    console = Console(Stream(terminal=True), err, environ={"TERM": "xterm-256color"})
    Previews(console, graphics="iterm2").show(picture())
    assert err.text().startswith("\x1b]1337;")
    assert "preview" not in err.text()


@pytest.mark.parametrize(
    ("environ", "accessible", "terminal"),
    [
        ({"TERM": "dumb"}, False, True),
        ({"NO_COLOR": "1", "TERM": "xterm"}, False, True),
        ({"TERM": "xterm-kitty"}, True, True),
        ({"TERM": "xterm-kitty"}, False, False),
    ],
)
def test_where_nothing_may_be_drawn_no_picture_is(
    environ: dict[str, str], accessible: bool, terminal: bool
) -> None:
    err = Stream(terminal=terminal)
    console = Console(Stream(terminal=True), err, environ=environ, accessible=accessible)
    Previews(console, graphics="kitty").show(picture())
    assert err.text() == ""


def shown_in(
    columns: int, rows: int, monkeypatch: pytest.MonkeyPatch, **environ: str
) -> tuple[str, int]:
    """Show a picture twice in a terminal of this size; return the output, and its rows."""
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((columns, rows)))
    err = Terminal(terminal=True)
    console = Console(Stream(terminal=True), err, environ={"TERM": "xterm-256color", **environ})
    previews = Previews(console)
    previews.show(picture())
    count = err.text().count("\n")
    previews.show(picture())
    return err.text(), count


@pytest.mark.parametrize(
    ("columns", "rows", "height"),
    [(80, 24, 6), (80, 40, 10), (200, 100, 12), (80, 16, 4), (80, 15, 0), (19, 40, 0), (24, 60, 8)],
)
def test_a_picture_takes_a_quarter_of_the_rows_and_none_of_a_small_screen(
    columns: int, rows: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, count = shown_in(columns, rows, monkeypatch)
    assert count == height
    assert bool(shown) == bool(height)


def test_gnu_screen_is_told_once_how_it_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    # The variable is of the terminal around it.
    environ = {"STY": "1.pts", "COLORTERM": "truecolor"}
    shown, _ = shown_in(80, 24, monkeypatch, TERM="screen", **environ)
    assert "\u2580" not in shown
    assert shown.count("`term screen-256color` in ~/.screenrc") == 1
    shown, _ = shown_in(80, 24, monkeypatch, TERM="screen-256color", **environ)
    assert "38;5;196" in shown
    assert "38;2;" not in shown
    assert "screenrc" not in shown
