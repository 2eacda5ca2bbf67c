"""Run `idefics` inside the test, with streams and services of its own."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from idefics_cli.cli.app import app
from idefics_cli.cli.services import Services


@dataclass(frozen=True)
class Ran:
    """What a run of the command left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    def __iter__(self) -> Iterator[int | str]:
        return iter((self.code, self.out, self.err))

    @property
    def record(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.out)


class Stream(io.TextIOWrapper):
    """A text stream in memory, which can pass for a terminal."""

    def __init__(self, *, terminal: bool, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", newline="")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def text(self) -> str:
        """Return what was written, decoded byte by byte."""
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding, "surrogateescape")


def run(
    *arguments: str,
    services: Services | None = None,
    terminal: bool = False,
    encoding: str = "utf-8",
) -> Ran:
    """Run `idefics` with *arguments* to its end.

    Args:
        arguments: As typed after `idefics`.
        services: The world outside; the real one if absent.
        terminal: Whether stdout and stderr are terminals.
        encoding: Of stdout and stderr.
    """
    out = Stream(terminal=terminal, encoding=encoding)
    err = Stream(terminal=terminal, encoding=encoding)
    excepthook = sys.excepthook
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            app(list(arguments), prog_name="idefics", obj=services)
    finally:
        sys.excepthook = excepthook  # `app` sets Typer's
    return Ran(int(end.value.code or 0), out.text(), err.text())
