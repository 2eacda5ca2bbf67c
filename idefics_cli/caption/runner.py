"""The run: pictures to an executor, its records to a sink in the order of the pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

from idefics_cli.caption.events import ExecutorEvent, ModelLoading, RunEvent, Started, Stopping
from idefics_cli.caption.executors import EXECUTORS
from idefics_cli.caption.interrupts import Interrupts
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.records import failed
from idefics_cli.caption.sinks.base import SidecarError, Sink
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine.protocol import EngineFactory


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        captioned: How many pictures were captioned.
        failed: How many failed.
        end: "done"; "interrupted", by Ctrl-C or SIGTERM; or "failures", when there were more
            than the run was to stand.
    """

    captioned: int
    failed: int
    end: Literal["done", "interrupted", "failures"] = "done"


def run_captions(
    job: CaptionJob,
    factory: EngineFactory,
    sink: Sink,
    *,
    on_event: Callable[[RunEvent], None] = lambda event: None,
    executor: str = "local",
    max_failures: int | None = None,
) -> RunResult:
    """Caption the pictures of *job* that *sink* has not got yet.

    Records are written in the order of the pictures, each as soon as all before it are. When
    the run is stopped, what is finished is written even past a gap, and the engine closed.

    Args:
        job: What to do.
        factory: Makes the engine, in this process or in a worker.
        sink: Already entered; the caller leaves it.
        on_event: Called with every event in this thread, with a record when it is written.
            `ModelLoading` may come in another thread, while this one waits for the model.
        executor: A key of `EXECUTORS`.
        max_failures: Stop when more pictures than this have failed.

    Raises:
        IdeficsError: If the model cannot be loaded or the output not written. A picture that
            fails raises nothing.
        KeyboardInterrupt: If Ctrl-C was pressed again, before the run had come to its end.
    """
    completed = sink.completed()
    todo = tuple(picture for picture in job.pictures if picture.key not in completed)
    skipped = len(job.pictures) - len(todo)
    job = replace(job, pictures=todo)
    on_event(Started(len(todo), skipped))
    if not todo:
        return RunResult(0, 0)
    interrupts = Interrupts(on_stop=lambda: on_event(Stopping()))
    delivery = _Delivery(sink, on_event, len(todo))
    events = EXECUTORS[executor](factory, job).caption(
        delivery.noted(todo),
        interrupts.stop,
        progress=lambda phase, share: on_event(ModelLoading(phase, share)),
    )
    with closing(events), interrupts.handled():
        return _deliver_all(events, delivery, interrupts, max_failures=max_failures)


def _deliver_all(
    events: Iterator[ExecutorEvent],
    delivery: _Delivery,
    interrupts: Interrupts,
    *,
    max_failures: int | None,
) -> RunResult:
    while (event := _next(events, interrupts, delivery)) is not None:
        delivery.take(event)
        interrupts.is_patient = True  # the model is loaded
        if max_failures is not None and delivery.failed > max_failures:
            return delivery.give_up("failures")
    if interrupts.stop.is_set() and not delivery.is_complete:
        return delivery.give_up("interrupted")
    delivery.check()
    return RunResult(delivery.captioned, delivery.failed)


def _next(
    events: Iterator[ExecutorEvent], interrupts: Interrupts, delivery: _Delivery
) -> ExecutorEvent | None:
    try:
        with interrupts.allowed():
            return next(events, None)
    except (Exception, KeyboardInterrupt):
        delivery.give_up("interrupted")
        raise


class _Delivery:
    """Writes records in the order of the pictures, whatever the order in which they come."""

    def __init__(self, sink: Sink, on_event: Callable[[RunEvent], None], total: int) -> None:
        self._sink = sink
        self._total = total
        self._on_event = on_event
        self._asked: deque[str] = deque()
        self._held: dict[str, CaptionRecord] = {}
        self.captioned = self.failed = 0

    def noted(self, pictures: Iterable[CaptionItem]) -> Iterator[CaptionItem]:
        """Yield *pictures*, and remember their order."""
        for picture in pictures:
            self._asked.append(picture.key)
            yield picture

    def take(self, event: ExecutorEvent) -> None:
        """Pass *event* on, a record when all before it are written."""
        if not isinstance(event, CaptionRecord):
            self._on_event(event)
            return
        self._held[event.file_name] = event
        while self._asked and self._asked[0] in self._held:
            self._write(self._held.pop(self._asked.popleft()))

    @property
    def is_complete(self) -> bool:
        """Whether every picture has its record."""
        return self.captioned + self.failed == self._total

    def give_up(self, end: Literal["interrupted", "failures"]) -> RunResult:
        """Write the finished records, even if a record before them will never come."""
        for key in self._asked:
            if key in self._held:
                self._write(self._held.pop(key))
        return RunResult(self.captioned, self.failed, end)

    def check(self) -> None:
        """Raise a RuntimeError if the executor lost a picture: a bug of ours."""
        if self._asked:
            raise RuntimeError(f"the executor gave no record for `{self._asked[0]}`")

    def _write(self, record: CaptionRecord) -> None:
        try:
            self._sink.write(record)
        except SidecarError as error:
            record = replace(failed(record.file_name, error), stamp=record.stamp)
            self._sink.write(record)
        if record.error is None:
            self.captioned += 1
        else:
            self.failed += 1
        self._on_event(record)
