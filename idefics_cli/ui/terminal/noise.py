"""A redirection that keeps messages of C libraries from tearing a progress bar on stderr."""

from __future__ import annotations

import faulthandler
import os
import tempfile
from contextlib import suppress
from typing import BinaryIO, TextIO

_STDERR = 2


class Noise:
    """Collects the messages of C libraries while a progress bar is on standard error.

    libpng, libtiff and OpenMP write to descriptor 2, not to `sys.stderr`. Between `start` and
    `stop`, descriptor 2 is a temporary file, and `terminal` leads where descriptor 2 led before.

    The target is a file because a full pipe blocks its writer. The writer may be a library that
    holds Python's global lock, and then no thread could empty the pipe.

    Args:
        stream: Standard error. Nothing is redirected if its descriptor is not 2.

    Attributes:
        terminal: The stream for the progress bar.
    """

    def __init__(self, stream: TextIO) -> None:
        self.terminal = stream
        self._stream = stream
        self._spool: BinaryIO | None = None
        self._had_faulthandler = False

    def start(self) -> None:
        """Collect messages from now on. Call this once."""
        if not _is_stderr(self._stream):
            return
        self._stream.flush()
        try:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed by lines)
            saved = os.dup(_STDERR)
        except OSError:  # without disk space nothing is redirected, and messages may tear the bar
            return
        self.terminal = open(  # noqa: SIM115 (closed by stop)
            saved, "w", encoding=self._stream.encoding, errors="backslashreplace"
        )
        os.dup2(self._spool.fileno(), _STDERR)
        # After a crash, Python writes a traceback to descriptor 2. It must reach the user.
        self._had_faulthandler = faulthandler.is_enabled()
        faulthandler.enable(self.terminal)

    def stop(self) -> None:
        """Restore standard error. Further calls do nothing."""
        if self.terminal is self._stream:
            return
        terminal, self.terminal = self.terminal, self._stream
        with suppress(OSError, ValueError):  # the disk is full, or the stream is closed
            self._stream.flush()
        os.dup2(terminal.fileno(), _STDERR)
        if self._had_faulthandler:
            faulthandler.enable(_STDERR)
        else:
            faulthandler.disable()
        with suppress(OSError):  # the terminal is closed
            terminal.close()

    def lines(self) -> list[str]:
        """Return the collected messages and remove them; call `stop` first."""
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
