"""The process of a worker: pickled pictures come on stdin, and events go to stdout."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import BinaryIO, Literal

from idefics_cli.caption.executors.event_stream import event_bytes
from idefics_cli.caption.executors.local import LocalExecutor
from idefics_cli.caption.executors.worker_protocol import (
    Errand,
    Task,
    WorkerAnswer,
    WorkerEnded,
    WorkerEvent,
    WorkerLoading,
)
from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.errors import IdeficsError

Command = tuple[CaptionItem, ...] | Literal["stop"]
"""Pictures to caption, or the order to finish the current batch."""


def work(commands: BinaryIO) -> None:
    """Caption the pictures that *commands* brings; never return.

    If the process at the other end ends, this one ends, too.

    Args:
        commands: Pickled `Errand`s, a pickled `Task`, then pickled `Command`s.
    """
    # The run decides what Ctrl-C and SIGTERM mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not be among the events
    warnings.filterwarnings("ignore")
    outbox, source = _Outbox(events), GivenPictures()
    try:
        while isinstance(task := pickle.load(commands), Errand):
            value = task.function()
            if task.answers:
                outbox.put(WorkerAnswer(value))
        if task.processors:
            with suppress(OSError):  # a container may take processors away at any time
                os.sched_setaffinity(0, task.processors)  # type: ignore[attr-defined, unused-ignore] # not on macOS and Windows
        Thread(target=_receive, args=(commands, source), daemon=True).start()
        outbox.put(run_task(task, source, outbox.put))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    # Python would wait for the thread that reads, and abort.
    os._exit(0)


class GivenPictures:
    """The pictures that have come; None stands for those that have not come yet.

    Attributes:
        stop: Tells the worker to finish its current batch.
    """

    def __init__(self) -> None:
        self._pictures: deque[CaptionItem] = deque()
        self.stop = Event()

    def add(self, pictures: Iterable[CaptionItem]) -> None:
        """Add *pictures*; from any thread."""
        self._pictures.extend(pictures)

    def __iter__(self) -> Iterator[CaptionItem | None]:
        return self

    def __next__(self) -> CaptionItem | None:
        return self._pictures.popleft() if self._pictures else None


def run_task(task: Task, source: GivenPictures, put: Callable[[WorkerEvent], None]) -> WorkerEnded:
    """Caption the pictures of *source*, give all events but the last to *put*, return the last.

    Args:
        task: What to do.
        source: The pictures; the work ends when its `stop` is set.
        put: Called in several threads.
    """

    def tell_progress(phase: str, share: float | None) -> None:
        put(WorkerLoading(phase, share))

    executor = LocalExecutor(task.factory, task.job, make_reader=task.make_reader)
    try:
        for event in executor.caption(source, source.stop, progress=tell_progress):
            put(event)
    except IdeficsError as error:
        return WorkerEnded(error=error)
    except Exception as error:  # a worker's edge
        return WorkerEnded(reason=f"{type(error).__name__}: {error}")
    return WorkerEnded()


class _Outbox:
    """Writes events, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = Lock()

    def put(self, event: WorkerEvent) -> None:
        data = event_bytes(event)
        try:
            with self._lock:
                self._stream.write(data)
                self._stream.flush()
        except OSError:  # nobody reads any more
            os._exit(1)


def _receive(commands: BinaryIO, source: GivenPictures) -> None:
    while True:
        try:
            command: Command = pickle.load(commands)
        except Exception:  # the run has ended, however it did
            os._exit(1)
        if command == "stop":
            source.stop.set()
        else:
            source.add(command)


def main() -> None:
    """Work for the process that started this one; see `processes.ProcessWorker`."""
    commands = sys.stdin.buffer
    sys.stdin = open(os.devnull)  # noqa: SIM115 (stays open)
    work(commands)
