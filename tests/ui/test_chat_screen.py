"""The screen of a chat, as tmux holds it: what a person sees, copies, and sees after a resize."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from idefics_cli.ui.chat.reflow import wraps_anew
from tests.support.talking import MARKDOWN, PARAGRAPH
from tests.support.tmux import Window, has_tmux

pytestmark = pytest.mark.skipif(not has_tmux(), reason="needs tmux")
OpenWindow = Callable[..., Window]


@pytest.fixture
def open_window(warm_python: tuple[str, ...]) -> OpenWindow:
    """Return a function that opens a window, as `Window` with a home folder and options."""
    return partial(Window, warm_python)


@pytest.mark.parametrize("arguments", [(), ("--accessible",)], ids=" ".join)
def test_text_typed_during_the_start_is_shown_once_at_the_prompt(
    arguments: tuple[str, ...], tmp_path: Path, open_window: OpenWindow
) -> None:
    with open_window(tmp_path, *arguments) as window:
        window.type("hello th")
        window.wait("hello th")
        window.type("ere")
        lines = window.wait("> hello there")
    banner = next(line for line in lines if "lists the commands" in line)
    assert not banner.startswith("hello")
    assert arguments or sum("hello" in line for line in lines) == 1


def test_a_paragraph_is_copied_as_one_line(tmp_path: Path, open_window: OpenWindow) -> None:
    with open_window(tmp_path, columns=60) as window:
        window.wait_for_prompt()
        window.type("story", "Enter")
        window.wait("word60.")
        window.wait_for_prompt()
        assert PARAGRAPH in window.lines(whole=True)
        assert PARAGRAPH not in window.lines()
        window.type("list", "Enter")
        window.wait("That is all.")
        assert MARKDOWN in "\n".join(window.lines(whole=True))


def test_an_answer_follows_the_width_of_the_terminal(
    tmp_path: Path, open_window: OpenWindow
) -> None:
    with open_window(tmp_path, columns=100) as window:
        window.wait_for_prompt()
        window.type("story", "Enter")
        window.wait("word5 ")
        for columns in (50, 120):
            window.resize(columns)
            window.wait("word15 ")
        window.wait("word60.")
        lines = window.wait_for_prompt()
        begin = lines.index(next(line for line in lines if line.startswith("word1 ")))
        count = -(-len(PARAGRAPH) // 120)
        assert [len(line) for line in lines[begin : begin + count - 1]] == [120] * (count - 1)
        assert PARAGRAPH in window.lines(whole=True)


def test_copy_gives_the_answer_to_tmux(tmp_path: Path, open_window: OpenWindow) -> None:
    with open_window(tmp_path) as window:
        window.wait_for_prompt()
        window.type("list", "Enter")
        window.wait("That is all.")
        window.wait_for_prompt()
        window.type("/copy", "Enter")
        window.wait(f"copied {len(MARKDOWN)} characters to tmux")
        assert window.buffer() == MARKDOWN


def test_a_resize_while_typing_leaves_one_prompt(tmp_path: Path, open_window: OpenWindow) -> None:
    question = " ".join(f"typed{number}" for number in range(20))
    with open_window(tmp_path, rows=18) as window:
        for said, answer in (("hello", "You said: hello"), ("story", "word60.")):
            window.wait_for_prompt()  # after these, it is at the bottom, as in any longer chat
            window.type(said, "Enter")
            window.wait(answer)
        window.wait_for_prompt()
        window.type(question)
        window.wait("typed19")
        for columns in (70, 50, 60, 33, 80):
            window.resize(columns, rows=18)
            time.sleep(0.7)  # nothing marks the end of the drawing
            lines = window.lines()
            begin = max(i for i, line in enumerate(lines) if line.endswith("word60.")) + 1
            shown = [line.removeprefix("> ").removeprefix("... ") for line in lines[begin:]]
            assert "".join(shown).replace(" ", "") == question.replace(" ", ""), lines


@pytest.mark.parametrize(
    ("environ", "wraps"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-256color", "XTERM_VERSION": "XTerm(379)"}, False),
        ({"TERM": "screen", "STY": "1.pts"}, False),
        ({"TERM": "screen", "TMUX": "x"}, True),
        ({"TERM": "linux"}, False),
    ],
)
def test_a_terminal_that_cuts_its_lines_has_no_further_rows(
    environ: dict[str, str], wraps: bool
) -> None:
    assert wraps_anew(environ) is wraps
