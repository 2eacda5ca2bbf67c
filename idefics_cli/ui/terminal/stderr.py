"""A standard error whose writes never fail.

A write to standard error fails if it leads to a full disk, or to a pipe whose reader has gone.
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TextIO


class _Dropping(io.TextIOWrapper):
    """A stream that writes to *stream*, and drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(
            stream.buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=True
        )
        self._stream = stream  # without a reference, *stream* would be closed with the buffer

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def dropping(stream: TextIO) -> TextIO:
    """Return *stream* as a stream whose `write` and `flush` never fail.

    A message that nobody can read must not end a run whose captions can be written. Besides, Python
    exits with code 120 if it cannot flush standard error at the end of the program.
    """
    return _Dropping(stream)
