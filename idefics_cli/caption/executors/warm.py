"""Processes of workers that import their libraries before a run knows what they will do."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Lock, Thread
from typing import TypeVar

from idefics_cli.caption.executors.event_stream import EventReader
from idefics_cli.caption.executors.worker_protocol import Errand, WorkerAnswer
from idefics_cli.core.closing import Closing
from idefics_cli.core.errors import IdeficsError
from idefics_cli.engine.factory import import_engine

# The path of imports comes first, so that a worker imports the same modules as this process.
_PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from idefics_cli.caption.executors.worker import main; main()"
)
READ_BYTES = 1 << 16
_END_SECONDS = 5.0

_T = TypeVar("_T")


class WorkerProcess:
    """A process that takes pickled `Errand`s, then a pickled `Task`, then `Command`s.

    Attributes:
        pipe: The file descriptor from which its events are read; see `EventReader`.

    Raises:
        IdeficsError: If the system starts no process.
    """

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                # `-P` leaves out the current folder, whose files are not the user's choice to run.
                [sys.executable, "-P", "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Ctrl-C in a terminal goes to all processes of a group. Only the run decides what
                # it means.
                process_group=None if os.name == "nt" else 0,
            )
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
        self.send(sys.path)

    @property
    def process_id(self) -> int:
        """The id of the process."""
        return self._process.pid

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
        self._errors.join(_END_SECONDS)  # `Popen.wait` with a limit looks every 0.05 s only
        for _ in range(2):
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(_END_SECONDS)
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


class WarmProcesses(Closing):
    """Processes that import the libraries of an engine while the run is planned.

    Args:
        count: Number of processes; fewer if the system starts no more.
    """

    def __init__(self, count: int) -> None:
        self._idle: deque[WorkerProcess] = deque()
        with suppress(IdeficsError):  # the run tells it, if it needs more of them
            for _ in range(count):
                self._idle.append(WorkerProcess())
        for process in [*self._idle][1:]:
            process.send(Errand(import_engine))

    def ask(self, function: Callable[[], _T]) -> _T | None:
        """Return what *function* returns in the first process; None if that process has died.

        This process then does not need the libraries that the function imports.

        Args:
            function: Picklable, as its result is.
        """
        if not self._idle:
            return None
        process, reader = self._idle[0], EventReader()
        process.send(Errand(function, answers=True))
        process.send(Errand(import_engine))
        with suppress(Exception):  # what came is not an answer
            while data := os.read(process.pipe, READ_BYTES):
                for event in reader.feed(data):
                    if isinstance(event, WorkerAnswer):
                        answer: _T = event.value
                        return answer
        _end(self._idle.popleft())
        return None

    def take_process(self) -> WorkerProcess:
        """Return one of the processes, or a new one.

        Raises:
            IdeficsError: If the system starts no process.
        """
        while self._idle:
            process = self._idle.popleft()
            if not process.has_ended:
                return process
            _end(process)
        return WorkerProcess()

    def close(self) -> None:
        """End the processes that were not taken; idempotent."""
        for process in self._idle:  # all at once, before a second Ctrl-C interrupts the waiting
            process.kill()
        while self._idle:
            _end(self._idle.popleft())


def _end(process: WorkerProcess) -> None:
    process.kill()
    process.wait()
    process.close()
