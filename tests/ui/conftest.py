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
def open_terminal() -> Iterator[Open]:
    """Return a function that opens a terminal with a chat."""
    from tests.support.chat_terminal import MODES, Terminal

    opened: list[Terminal] = []

    def get(home: Path, *arguments: str, mode: Mode = MODES[0]) -> Terminal:
        opened.append(Terminal((sys.executable,), home, *arguments, mode=mode))
        return opened[-1]

    yield get
    for terminal in opened:
        terminal.child.close(force=True)
