"""The protocol between a run and its workers: what a worker does, and the events that it gives."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from idefics_cli.caption.events import ExecutorEvent
from idefics_cli.caption.executors.reading import MakeReader
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob
from idefics_cli.core.errors import IdeficsError
from idefics_cli.engine.protocol import EngineFactory


@dataclass(frozen=True, slots=True)
class WorkerLoading:
    """A worker loads its model; the fields are those of `core.types.Progress`."""

    phase: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerNamed:
    """A worker has the name *name* from now on, for example that of its node."""

    name: str


@dataclass(frozen=True, slots=True)
class WorkerEnded:
    """A worker has ended.

    Attributes:
        reason: Why it died; None if it did not die.
        error: Why it cannot work at all, such as a missing model.
        blames_pictures: Whether one of its pictures may be the reason. If not, they are captioned
            as if they had not begun, and an error leaves the place empty.
    """

    reason: str | None = None
    error: IdeficsError | None = None
    blames_pictures: bool = True


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker does.

    Attributes:
        factory: Makes its engine.
        job: The job, without pictures.
        make_reader: Makes the reader of the items.
        processors: Numbers of the processors that its threads use; empty for all.
    """

    factory: EngineFactory
    job: CaptionJob
    make_reader: MakeReader
    processors: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Errand:
    """A call that the process of a worker makes before it gets its task.

    Attributes:
        function: What it calls; picklable.
        answers: Whether the process sends the result, in a `WorkerAnswer`.
    """

    function: Callable[[], object]
    answers: bool = False


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """The result of an `Errand`."""

    value: Any  # Any: an errand can return any picklable value


WorkerEvent = ExecutorEvent | WorkerLoading | WorkerNamed | WorkerAnswer | WorkerEnded
Received = tuple["CaptionWorker", WorkerEvent]
"""A worker and its event; `WorkerEnded` is the last one of each."""


class CaptionWorker(Protocol):
    """Captions pictures elsewhere, with one engine. No method waits for the model."""

    def add(self, pictures: Sequence[CaptionItem]) -> None:
        """Give it *pictures*; each gets a record, unless the worker dies."""
        ...

    def stop(self) -> None:
        """Let it finish its current batch, and end."""
        ...

    def kill(self) -> None:
        """End it at once; idempotent."""
        ...


class Inbox:
    """Receives the events of all workers, from threads and from pipes.

    Pipes are read in the thread that takes the events. A thread for each pipe would wake for each
    record, and a process that wakes so often needs much more processor time for a record.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Received] = SimpleQueue()
        self._pipes: selectors.BaseSelector | None = None

    def put(self, received: Received) -> None:
        """Add an event; from any thread. While pipes are watched, it does not wake `take`."""
        self._queue.put(received)

    def watch(self, pipe: int, receive: Callable[[], Sequence[Received]]) -> None:
        """Watch a pipe, in the thread that calls `take`.

        Args:
            pipe: A file descriptor. Windows cannot watch a pipe.
            receive: Called when the pipe has bytes or has ended. It reads once.
        """
        if self._pipes is None:
            self._pipes = selectors.DefaultSelector()
        self._pipes.register(pipe, selectors.EVENT_READ, receive)

    def forget(self, pipe: int) -> None:
        """Watch *pipe* no longer, before it is closed; idempotent."""
        if self._pipes is not None:
            with suppress(KeyError):
                self._pipes.unregister(pipe)

    def take(self, timeout_seconds: float) -> list[Received]:
        """Return the events that have come; wait at most *timeout_seconds* for the first one.

        Without pipes, a call that waits returns one event.
        """
        events: list[Received] = []
        if self._pipes is not None:
            for key, _ in self._pipes.select(timeout_seconds):
                events += key.data()
        with suppress(Empty):
            if self._pipes is None and timeout_seconds:
                return [self._queue.get(timeout=timeout_seconds)]
            while True:
                events.append(self._queue.get_nowait())
        return events

    def close(self) -> None:
        """Watch no pipe any more; idempotent."""
        if self._pipes is not None:
            self._pipes.close()
            self._pipes = None


@dataclass(frozen=True, slots=True)
class Hire:
    """A place for a worker.

    Attributes:
        name: Name of the place, such as "cuda:1".
        start: Starts a worker, whose events go to the inbox.
    """

    name: str
    start: Callable[[Inbox], CaptionWorker]
