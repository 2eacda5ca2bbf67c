"""A keyboard and the line editor that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.ui.chat.line_input import DrawnInput
from tests.support.commands import Stream

CTRL_C, CTRL_R, ALT_ENTER, ENTER, UP = "\x03", "\x12", "\x1b\r", "\r", "\x1b[A"


class Terminal(Stream):
    """A stream with a file descriptor, which prompt-toolkit needs."""

    def fileno(self) -> int:
        return 2


@contextmanager
def keyboard(history: Path | None = None) -> Iterator[tuple[PipeInput, DrawnInput]]:
    """Yield a keyboard, and the input that reads it."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        lines = DrawnInput(
            Terminal(terminal=True), lambda line: [Candidate("/image", len(line))], history
        )
        yield keys, lines
