"""A pseudo-terminal with `idefics chat` in it; needs pexpect."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])")

# A prompt that reads keys.
PROMPT = r"> ?(?:\x1b\[0m[^>]*\x1b\[\?25h)?$"


@dataclass(frozen=True)
class Mode:
    """A kind of terminal.

    Attributes:
        draws: Whether it shows escape sequences.
        is_fresh: Whether a new Python runs the chat, and not a fork of a warm one.
    """

    name: str
    columns: int = 80
    arguments: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    draws: bool = True
    is_fresh: bool = False


MODES = (
    Mode("80 columns"),
    Mode("40 columns without colours", columns=40, environ={"NO_COLOR": "1"}),
    # Wider than the lines, because readline scrolls a longer line by escape sequences.
    Mode("dumb", columns=200, environ={"TERM": "dumb"}, draws=False),
    Mode("accessible", columns=200, arguments=("--accessible",), draws=False),
)


class Terminal:
    """A terminal with `idefics chat` in it."""

    def __init__(
        self, python: Sequence[str], home: Path, *arguments: str, mode: Mode = MODES[0]
    ) -> None:
        environ = {
            **os.environ,
            "HOME": str(home),
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "OMP_NUM_THREADS": "1",
            # Without a compiled step, answers take long enough to be interrupted.
            "IDEFICS_ATTENTION": "eager",
            **mode.environ,
        }
        self.home = home
        program, *before = python
        self.child = pexpect.spawn(
            program,
            [*before, "-m", "idefics_cli", "chat", "-m", "demo", "--device", "cpu", *mode.arguments,
             *arguments],
            env=environ, dimensions=(24, mode.columns), timeout=90, encoding="utf-8",
        )  # fmt: skip
        self.raw = ""

    def type(self, line: str, end: str = "\r") -> None:
        """Type *line* and a key."""
        self.child.send(line + end)

    def see(self, text: str) -> str:
        """Wait for *text*, in lines of any length; return the output up to its end."""
        self.child.expect(re.escape(text).replace(r"\ ", r"\s+"))
        shown: str = self.child.before + self.child.after
        self.raw += shown
        return ESCAPES.sub("", shown)

    def answer(self, question: str, answer: str) -> None:
        """Ask *question*, and wait for the line *answer*."""
        self.type(question)
        self.see(f"{answer}\r\n")

    def wait_for_prompt(self) -> None:
        """Wait until the prompt reads keys, and not the terminal itself."""
        self.child.expect(PROMPT)

    def leave(self) -> int:
        """Leave with Ctrl-D; return the exit code."""
        self.wait_for_prompt()
        self.child.sendeof()
        self.child.expect(pexpect.EOF)
        self.raw += self.child.before
        self.child.close()
        return int(self.child.exitstatus)


def check_screen(raw: str, mode: Mode) -> None:
    """Check that the terminal got no escape sequences that its mode excludes."""
    assert "Traceback" not in raw
    assert "\x1b[6n" not in raw  # an answer about the cursor may come late
    assert ("▀" in raw) == (mode.draws and "NO_COLOR" not in mode.environ)
    if not mode.draws:
        # Readline may ask for meta keys and bracketed paste; nothing else.
        assert set(re.findall(r"\x1b\[[0-9;]*[A-HJKm]", raw)) == set()
        assert not re.search("[─│╭█⠋⠙]", raw)
    if mode.environ.get("NO_COLOR"):
        assert not re.search(r"\x1b\[[0-9;]*[34]8;", raw)


Open = Callable[..., Terminal]
"""Opens a terminal with a chat, as `Terminal` with a home folder and arguments."""
