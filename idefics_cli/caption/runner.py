"""From pictures to an executor, and from its records to the output in the order of the pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace

from idefics_cli.caption.events import ExecutorEvent, ModelLoading, RunEvent, Stopping
from idefics_cli.caption.executors import LocalExecutor, MakeExecutor
from idefics_cli.caption.interrupts import Interrupts
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.outcome import RunEnd, RunOutcome
from idefics_cli.caption.records import failed
from idefics_cli.caption.sinks.base import RecordError
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine.protocol import EngineFactory

OnEvent = Callable[[RunEvent], None]


def run_captions(
    job: CaptionJob,
    factory: EngineFactory,
    write: Callable[[CaptionRecord], None],
    *,
    on_event: OnEvent = lambda event: None,
    make_executor: MakeExecutor = LocalExecutor,
    max_failures: int | None = None,
) -> RunOutcome:
    """Caption every picture of *job*, and write the records in the order of the pictures.

    Each record is written as soon as all before it are. When the run is stopped, the finished
    records are written even past a gap, and the engine is closed.

    Args:
        job: What to do; without pictures, no engine is made.
        factory: Makes the engine, in this process or in a worker.
        write: Stores a record; as `Sink.write`.
        on_event: Called with every event in this thread, with a record when it is written.
            `ModelLoading` may come in another thread, while this one waits for the model.
        make_executor: Makes the executor; a value of `EXECUTORS`.
        max_failures: Stop when more pictures than this have failed.

    Raises:
        IdeficsError: If the model cannot be loaded or the output not written. A picture that
            fails raises nothing.
        KeyboardInterrupt: If Ctrl-C was pressed again before the run had come to its end.
    """
    if not job.pictures:
        return RunOutcome(0, 0)
    interrupts = Interrupts(on_stop=lambda: on_event(Stopping()))
    delivery = _Delivery(job.pictures, write, on_event)
    events = make_executor(factory, job).caption(
        delivery.requested(),
        interrupts.stop,
        progress=lambda phase, share: on_event(ModelLoading(phase, share)),
    )
    with closing(events), interrupts.handled():
        return _deliver_all(events, delivery, interrupts, max_failures)


def _deliver_all(
    events: Iterator[ExecutorEvent],
    delivery: _Delivery,
    interrupts: Interrupts,
    max_failures: int | None,
) -> RunOutcome:
    while (event := _next(events, interrupts, delivery)) is not None:
        delivery.deliver(event)
        interrupts.is_patient = True  # the model is loaded
        if max_failures is not None and delivery.failed > max_failures:
            return delivery.give_up("failures")
    if interrupts.stop.is_set() and not delivery.is_complete:
        return delivery.give_up("interrupted")
    delivery.check_complete()
    return RunOutcome(delivery.captioned, delivery.failed)


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

    def __init__(
        self,
        pictures: tuple[CaptionItem, ...],
        write: Callable[[CaptionRecord], None],
        on_event: OnEvent,
    ) -> None:
        self._pictures = pictures
        self._store = write
        self._on_event = on_event
        self._expected: deque[str] = deque()
        self._held: dict[str, CaptionRecord] = {}
        self.captioned = self.failed = 0

    @property
    def is_complete(self) -> bool:
        """Whether every picture has its record."""
        return self.captioned + self.failed == len(self._pictures)

    def requested(self) -> Iterable[CaptionItem]:
        """Yield the pictures, and expect a record of each from then on."""
        for picture in self._pictures:
            self._expected.append(picture.key)
            yield picture

    def deliver(self, event: ExecutorEvent) -> None:
        """Pass *event* on; a record waits until all before it are written."""
        if not isinstance(event, CaptionRecord):
            self._on_event(event)
            return
        self._held[event.file_name] = event
        while self._expected and self._expected[0] in self._held:
            self._write(self._held.pop(self._expected.popleft()))

    def give_up(self, end: RunEnd) -> RunOutcome:
        """Write the finished records, even if a record before them will never come."""
        for key in self._expected:
            if key in self._held:
                self._write(self._held.pop(key))
        return RunOutcome(self.captioned, self.failed, end)

    def check_complete(self) -> None:
        """Raise a RuntimeError if the executor lost a picture: a bug of ours."""
        if self._expected:
            raise RuntimeError(f"the executor gave no record for `{self._expected[0]}`")

    def _write(self, record: CaptionRecord) -> None:
        try:
            self._store(record)
        except RecordError as error:
            record = replace(failed(record.file_name, error), stamp=record.stamp)
            self._store(record)
        if record.error is None:
            self.captioned += 1
        else:
            self.failed += 1
        self._on_event(record)
