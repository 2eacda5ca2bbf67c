"""The run: pictures to an executor, its records to a sink in the order of the pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from idefics_cli.caption.executors import EXECUTORS
from idefics_cli.caption.executors.base import BatchReduced, ExecutorEvent, Item, Ready
from idefics_cli.caption.interrupts import Interrupts
from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.sinks.base import Sink
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine import EngineFactory


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins with *total* pictures to caption."""

    total: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many pictures of a run were captioned, and how many failed."""

    captioned: int
    failed: int


RunEvent = Started | Ready | BatchReduced | CaptionRecord


def run_captions(
    job: CaptionJob,
    factory: EngineFactory,
    sink: Sink,
    *,
    on_event: Callable[[RunEvent], None] = lambda event: None,
    executor: str = "local",
) -> Outcome:
    """Caption the pictures of *job* that *sink* has not got yet.

    Records are written in the order of the pictures, each as soon as all before it are. When
    the run is interrupted, what is finished is written even past a gap, and the engine closed.

    Args:
        job: What to do.
        factory: Makes the engine, here or in a worker.
        sink: Already entered; the caller leaves it.
        on_event: Told of every event, of a record when it is written; called in this thread.
        executor: A key of `EXECUTORS`.

    Raises:
        IdeficsError: If the model cannot be loaded or the output not written. A picture that
            fails raises nothing.
    """
    completed = sink.completed()
    todo = tuple(picture for picture in job.pictures if picture.key not in completed)
    job = replace(job, pictures=todo)
    on_event(Started(len(todo)))
    if not todo:
        return Outcome(0, 0)
    delivery = _Delivery(sink, on_event)
    interrupts = Interrupts()
    events = EXECUTORS[executor](factory, job).caption(delivery.noted(job.items()))
    with closing(events), interrupts.deferred():
        while (event := _next(events, interrupts, delivery)) is not None:
            delivery.take(event)
    return delivery.outcome()


def _next(
    events: Iterator[ExecutorEvent], interrupts: Interrupts, delivery: _Delivery
) -> ExecutorEvent | None:
    try:
        with interrupts.allowed():
            return next(events, None)
    except (Exception, KeyboardInterrupt):
        delivery.give_up()
        raise


class _Delivery:
    """Writes records in the order of the pictures, whatever the order in which they come."""

    def __init__(self, sink: Sink, on_event: Callable[[RunEvent], None]) -> None:
        self._sink = sink
        self._on_event = on_event
        self._asked: deque[str] = deque()
        self._held: dict[str, CaptionRecord] = {}
        self._captioned = self._failed = 0

    def noted(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield *items*, and remember their order."""
        for item in items:
            self._asked.append(item[0])
            yield item

    def take(self, event: ExecutorEvent) -> None:
        """Pass *event* on, a record when all before it are written."""
        if not isinstance(event, CaptionRecord):
            self._on_event(event)
            return
        self._held[event.file_name] = event
        while self._asked and self._asked[0] in self._held:
            self._write(self._held.pop(self._asked.popleft()))

    def give_up(self) -> None:
        """Write what is finished, though something before it never will be."""
        for key in self._asked:
            if key in self._held:
                self._write(self._held.pop(key))

    def outcome(self) -> Outcome:
        """Return the counts of a run that came to its end.

        Raises:
            RuntimeError: If the executor lost a picture: a bug of ours.
        """
        if self._asked:
            raise RuntimeError(f"the executor gave no record for `{self._asked[0]}`")
        return Outcome(self._captioned, self._failed)

    def _write(self, record: CaptionRecord) -> None:
        self._sink.write(record)
        if record.error is None:
            self._captioned += 1
        else:
            self._failed += 1
        self._on_event(record)
