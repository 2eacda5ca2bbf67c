"""The process of a worker, and the pipes to it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from threading import Lock, Thread
from typing import IO, Protocol

from idefics_cli.core.errors import IdeficsError

_END_SECONDS = 5.0
_PAUSE_SECONDS = 0.001


class PipedProcess(Protocol):
    """A process with pipes to its standard streams: what `subprocess.Popen` has of it."""

    @property
    def stdin(self) -> IO[bytes] | None:
        """The pipe to its standard input."""
        ...

    @property
    def stdout(self) -> IO[bytes] | None:
        """The pipe from its standard output."""
        ...

    @property
    def stderr(self) -> IO[bytes] | None:
        """The pipe from its standard error."""
        ...

    def poll(self) -> int | None:
        """Return the exit code, or None as long as the process runs."""
        ...

    def kill(self) -> None:
        """End the process; it may need a moment."""
        ...


def start_python(module: str, streams: tuple[int, int, int]) -> subprocess.Popen[bytes]:
    """Start Python, and call `main` of *module*, which imports the same modules as this process.

    Args:
        module: Name of a module of this package.
        streams: Its standard streams, as for `Popen`.

    Raises:
        OSError: If the system starts no process.
    """
    program = (
        f"import sys; sys.path[:] = {sys.path!a}; "
        f"from idefics_cli.caption.executors.{module} import main; main()"
    )
    stdin, stdout, stderr = streams
    return subprocess.Popen(
        # `-P` leaves out the current folder, whose files are not the user's choice to run.
        [sys.executable, "-P", "-c", program],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        # Ctrl-C in a terminal goes to all processes of a group. Only the run decides what it means.
        process_group=None if os.name == "nt" else 0,
    )


class WorkerProcess:
    """A process that takes pickled `Errand`s, then a pickled `Task`, then `Command`s.

    Args:
        process: The process, if it is not a new one.

    Attributes:
        pipe: The file descriptor from which its events are read; see `EventReader`.

    Raises:
        IdeficsError: If the system starts no process.
    """

    def __init__(self, process: PipedProcess | None = None) -> None:
        try:
            self._process = process or start_python("worker", (subprocess.PIPE,) * 3)
        except OSError as error:
            raise IdeficsError(
                f"cannot start a worker: {error.strerror or error}", hint="take fewer workers"
            ) from error
        assert self._process.stdout is not None
        self.pipe = self._process.stdout.fileno()
        self._lock = Lock()
        self._lines: deque[bytes] = deque(maxlen=20)
        self._errors = Thread(target=self._read_errors, daemon=True)
        self._errors.start()

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        assert self._process.stdout is not None
        return self._process.stdout.closed

    @property
    def last_line(self) -> str:
        """The last line that it wrote to stderr; empty if there is none."""
        last = next((line for line in reversed(self._lines) if line.strip()), b"")
        return last.decode("utf-8", "replace").strip()[:300]

    def send(self, what: object) -> None:
        """Send *what*, pickled; a process that has died gets nothing."""
        assert self._process.stdin is not None
        data = pickle.dumps(what)
        with self._lock, suppress(OSError, ValueError):
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def kill(self) -> None:
        """End the process; it may need a moment."""
        self._process.kill()

    def wait(self) -> int:
        """Wait for the end of the process, kill it if there is none, and return its exit code."""
        self._errors.join(_END_SECONDS)  # then it has ended, or will in a moment
        for _ in range(2):
            until = time.monotonic() + _END_SECONDS
            while time.monotonic() < until:
                if (code := self._process.poll()) is not None:
                    return code
                time.sleep(_PAUSE_SECONDS)
            self._process.kill()
        return -9  # a process that waits for a broken device may stay for ever

    def close(self) -> None:
        """Close the pipes of a process that has ended."""
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        self._process.stdout.close()
        with self._lock, suppress(OSError):
            self._process.stdin.close()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream, suppress(OSError, ValueError):
            self._lines.extend(stream)
