"""What libraries write to standard error, kept from a terminal that is drawn on."""

from __future__ import annotations

import faulthandler
import os
import tempfile
from contextlib import suppress
from typing import BinaryIO, TextIO

_STDERR = 2


class Noise:
    """Keeps aside what others write to standard error while something is drawn there.

    libpng, libtiff and OpenMP write to descriptor 2, past `sys.stderr`. Between `start` and
    `stop` that is a file, and `terminal` leads to where it led before. A file and no pipe: who
    writes is never held up, also a library that does so with Python's lock in its hand. A stream
    that is not descriptor 2 is left as it is.

    Args:
        stream: Standard error.

    Attributes:
        terminal: What to draw on.
    """

    def __init__(self, stream: TextIO) -> None:
        self.terminal = stream
        self._stream = stream
        self._spool: BinaryIO | None = None
        self._had_faulthandler = False

    def start(self) -> None:
        """Keep aside what comes from now on; for one time."""
        if not _is_stderr(self._stream):
            return
        self._stream.flush()
        try:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed by lines)
            saved = os.dup(_STDERR)
        except OSError:  # no room for it: then the bar is torn, and nothing else
            return
        self.terminal = open(  # noqa: SIM115 (closed by stop)
            saved, "w", encoding=self._stream.encoding, errors="backslashreplace"
        )
        os.dup2(self._spool.fileno(), _STDERR)
        # Where the process crashed, if it does, is for the user to see.
        self._had_faulthandler = faulthandler.is_enabled()
        faulthandler.enable(self.terminal)

    def stop(self) -> None:
        """Let standard error be what it was; idempotent."""
        if self.terminal is self._stream:
            return
        terminal, self.terminal = self.terminal, self._stream
        with suppress(OSError, ValueError):  # to a full disk, or closed by somebody
            self._stream.flush()
        os.dup2(terminal.fileno(), _STDERR)
        if self._had_faulthandler:
            faulthandler.enable(_STDERR)
        else:
            faulthandler.disable()
        with suppress(OSError):  # the terminal is gone
            terminal.close()

    def lines(self) -> list[str]:
        """Return what came, once it is stopped; and forget it."""
        if self._spool is None:
            return []
        with self._spool as spool:
            self._spool = None
            spool.seek(0)
            lines = spool.read().decode(errors="replace").splitlines()
        return [line for line in lines if line.strip()]


def _is_stderr(stream: TextIO) -> bool:
    try:
        return stream.fileno() == _STDERR
    except (OSError, ValueError):  # a stream in memory
        return False
