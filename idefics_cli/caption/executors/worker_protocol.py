"""The protocol between a run and its workers: what a worker does, and the events that it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

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
    """

    factory: EngineFactory
    job: CaptionJob
    make_reader: MakeReader


WorkerEvent = ExecutorEvent | WorkerLoading | WorkerNamed | WorkerEnded
Inbox = SimpleQueue[tuple["CaptionWorker", WorkerEvent]]
"""Receives the events of all workers; `WorkerEnded` is the last one of each."""


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


@dataclass(frozen=True, slots=True)
class Hire:
    """A place for a worker.

    Attributes:
        name: Name of the place, such as "cuda:1".
        start: Starts a worker, whose events go to the inbox.
    """

    name: str
    start: Callable[[Inbox], CaptionWorker]
