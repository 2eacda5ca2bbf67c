"""Fixtures of the tests of the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.chat_terminal import Mode, Open, Terminal


@pytest.fixture
def open_terminal(warm_python: tuple[str, ...]) -> Iterator[Open]:
    """Return a function that opens a terminal with a chat.

    The chat is a fork of a warm Python, but for a mode that says otherwise: a fork does not belong
    to the terminal, and gets the signals of keys from its client.
    """
    from tests.support.chat_terminal import MODES, Terminal

    opened: list[Terminal] = []

    def get(home: Path, *arguments: str, mode: Mode = MODES[0]) -> Terminal:
        python = (sys.executable,) if mode.is_fresh else warm_python
        opened.append(Terminal(python, home, *arguments, mode=mode))
        return opened[-1]

    yield get
    for terminal in opened:
        terminal.child.close(force=True)
