"""A wrong call of `idefics`, as data."""

from __future__ import annotations

from dataclasses import dataclass

from idefics_cli.core.errors import IdeficsError
from idefics_cli.hardware.machine import Machine
from tests.support.commands import MACHINE


@dataclass(frozen=True)
class Call:
    """A wrong call, and the error that it must give.

    Attributes:
        line: The arguments, as in a shell.
        error: Class of the error.
        message: Text after `error: `; `...` stands for any text.
        hint: Text after `hint: `; None if there is no such line, "..." for any hint.
        kind: Kind of an `ImageError`.
        stdin: Bytes on stdin; None if it is closed.
        environ: Variables as `NAME=value`.
        machine: The machine of the call.
    """

    line: str
    error: type[IdeficsError]
    message: str
    hint: str | None = None
    kind: str | None = None
    stdin: bytes | None = None
    environ: str = ""
    machine: Machine = MACHINE

    def __str__(self) -> str:
        given = " ".join(filter(None, (self.environ, self.line)))
        return given if self.stdin is None else f"{given} <{self.stdin[:8]!r}"
