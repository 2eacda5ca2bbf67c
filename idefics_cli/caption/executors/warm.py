"""Processes of workers that import their libraries before a run knows what they will do."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from idefics_cli.caption.executors.event_stream import EventReader
from idefics_cli.caption.executors.forks import EARLY_FORK, FORK, ForkServer
from idefics_cli.caption.executors.worker_process import WorkerProcess
from idefics_cli.caption.executors.worker_protocol import Errand, WorkerAnswer
from idefics_cli.core.closing import Closing
from idefics_cli.core.errors import IdeficsError
from idefics_cli.engine.factory import import_engine

READ_BYTES = 1 << 16
_T = TypeVar("_T")


class WarmProcesses(Closing):
    """Processes that import the libraries of an engine while the run is planned.

    Args:
        count: Number of processes; fewer if the system starts no more.
        forks: Whether one process imports the libraries, and forks for all workers; see
            `ForkServer`. Ignored where it is not Linux.
    """

    def __init__(self, count: int, *, forks: bool = False) -> None:
        self._idle: deque[WorkerProcess] = deque()
        # Forks that answered before all libraries were imported.
        self._asked: deque[WorkerProcess] = deque()
        self._server: ForkServer | None = None
        with suppress(IdeficsError, OSError):  # the run tells it, if it needs more of them
            if forks and sys.platform == "linux":
                self._server = ForkServer()
                return
            for _ in range(count):
                self._idle.append(WorkerProcess())
        for process in [*self._idle][1:]:
            process.send(Errand(import_engine))

    def ask(self, function: Callable[[], _T]) -> _T | None:
        """Return what *function* returns in another process; None if that process has died.

        This process then does not need the libraries that the function imports.

        Args:
            function: Picklable, as its result is.
        """
        errand = Errand(function, answers=True)
        if self._server is not None:
            process = self._start(EARLY_FORK)
            self._asked.append(process)
            self._server.import_all()
            process.send(errand)
            answer = _receive_answer(process)
            process.kill()  # so that its memory is free
        elif self._idle:
            process = self._idle[0]
            process.send(errand)
            process.send(Errand(import_engine))
            answer = _receive_answer(process)
            if answer is None:
                _end(self._idle.popleft())
        else:
            return None
        value: _T | None = None if answer is None else answer.value
        return value

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
        return self._start(FORK)

    def close(self) -> None:
        """End the processes that were not taken; idempotent."""
        for process in (*self._idle, *self._asked):
            process.kill()  # all at once, before a second Ctrl-C interrupts the waiting
        if self._server is not None:
            self._server.close()
        for ended in (self._idle, self._asked):
            while ended:
                _end(ended.popleft())

    def _start(self, kind: bytes) -> WorkerProcess:
        with suppress(OSError):  # if the server has ended, each process imports for itself
            if self._server is not None:
                return WorkerProcess(self._server.fork(kind))
        return WorkerProcess()


def _end(process: WorkerProcess) -> None:
    process.kill()
    process.wait()
    process.close()


def _receive_answer(process: WorkerProcess) -> WorkerAnswer | None:
    reader = EventReader()
    with suppress(Exception):  # what came is not an answer
        while data := os.read(process.pipe, READ_BYTES):
            for event in reader.feed(data):
                if isinstance(event, WorkerAnswer):
                    return event
    return None
