"""The screen of a chat, as tmux holds it: what a person sees, copies, and sees after a resize."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.talking import MARKDOWN, PARAGRAPH
from tests.support.tmux import Window, has_tmux

pytestmark = pytest.mark.skipif(not has_tmux(), reason="needs tmux")


def test_a_paragraph_is_copied_as_one_line(tmp_path: Path) -> None:
    with Window(tmp_path, columns=60) as window:
        window.wait_for_prompt()
        window.type("story", "Enter")
        window.wait("word60.")
        window.wait_for_prompt()
        assert PARAGRAPH in window.lines(whole=True)
        assert PARAGRAPH not in window.lines()
        window.type("list", "Enter")
        window.wait("That is all.")
        assert MARKDOWN in "\n".join(window.lines(whole=True))


def test_an_answer_follows_the_width_of_the_terminal(tmp_path: Path) -> None:
    with Window(tmp_path, columns=100) as window:
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


def test_copy_gives_the_answer_to_tmux(tmp_path: Path) -> None:
    with Window(tmp_path) as window:
        window.wait_for_prompt()
        window.type("list", "Enter")
        window.wait("That is all.")
        window.wait_for_prompt()
        window.type("/copy", "Enter")
        window.wait(f"copied {len(MARKDOWN)} characters to tmux")
        assert window.buffer() == MARKDOWN
