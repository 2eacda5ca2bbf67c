"""Standard error that may be unwritable: a full disk, or a pipe that its reader has closed."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TextIO


class _Dropping(io.TextIOWrapper):
    """Drops what cannot be written to *stream*."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(
            stream.buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=True
        )
        self._stream = stream  # its end would close the buffer

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def dropping(stream: TextIO) -> TextIO:
    """Return *stream* as a stream whose `write` and `flush` never fail.

    A message that nobody can read must not end a run whose captions can be written. Python itself
    would exit with code 120 if it cannot flush standard error at its end.
    """
    return _Dropping(stream)
