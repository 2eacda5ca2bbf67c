"""The runner: it gives pictures to an executor, and writes the records in the order of pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from idefics_cli.core.types import CaptionRecord, Progress
from idefics_cli.engine.protocol import EngineFactory

# At most this many batches begin after the oldest picture without a record.
_BATCHES_AHEAD = 64

OnEvent = Callable[[RunEvent], None]


def run_captions(
    job: CaptionJob,
    factory: EngineFactory,
    write: Callable[[CaptionRecord], object],
    *,
    hold: Callable[[CaptionRecord], object] = lambda record: None,
    on_event: OnEvent = lambda event: None,
    make_executor: MakeExecutor = LocalExecutor,
    max_failures: int | None = None,
    workers: int = 1,
) -> RunOutcome:
    """Caption every picture of *job*, and write the records in the order of the pictures.

    A record is written as soon as all records before it are. When the run is stopped, the finished
    records are written even if one before them is missing, and the engine is closed.

    Args:
        job: What to do; without pictures, no engine is made.
        factory: Makes the engine, in this process or in a worker.
        write: Stores a record; see `Sink.write`.
        hold: Called with a record that must wait until those before it are written.
        on_event: Called in this thread with every event; with a record after it was written.
            For `ModelLoading`, it may be called in another thread.
        make_executor: Makes the executor; a value of `EXECUTORS`.
        max_failures: Stop when more pictures than this have failed.
        workers: Number of engines.

    Raises:
        IdeficsError: If the model cannot be loaded, or the output cannot be written.
        KeyboardInterrupt: If Ctrl-C was pressed a second time before the run ended.
    """
    if not job.pictures:
        return RunOutcome(0, 0)
    interrupts = Interrupts(on_stop=lambda: on_event(Stopping()))
    delivery = _Delivery(job.pictures, write, hold, on_event, window=_window(job, workers))
    executor, progress = make_executor(factory, job), _progress(on_event)
    events = executor.caption(delivery.requested(), interrupts.stop, progress=progress)
    with closing(events), interrupts.handled():
        return _deliver_all(events, delivery, interrupts, max_failures)


def _progress(on_event: OnEvent) -> Progress:
    return lambda phase, share: on_event(ModelLoading(phase, share))


def _window(job: CaptionJob, workers: int) -> int:
    return _BATCHES_AHEAD * job.batch_size * workers


def _deliver_all(
    events: Iterator[ExecutorEvent],
    delivery: _Delivery,
    interrupts: Interrupts,
    max_failures: int | None,
) -> RunOutcome:
    while (event := _next(events, interrupts, delivery)) is not None:
        delivery.deliver(event)
        interrupts.is_patient = True  # the model is loaded
        too_many = max_failures is not None and delivery.failed > max_failures
        if too_many and not delivery.is_complete:
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
    """Writes records in the order of the pictures; they may arrive in any order."""

    def __init__(
        self,
        pictures: Sequence[CaptionItem],
        write: Callable[[CaptionRecord], object],
        hold: Callable[[CaptionRecord], object],
        on_event: OnEvent,
        *,
        window: int,
    ) -> None:
        self._window = window
        self._pictures = pictures
        self._store = write
        self._hold = hold
        self._on_event = on_event
        self._expected: deque[str] = deque()
        self._held: dict[str, CaptionRecord] = {}
        self.captioned = self.failed = 0

    @property
    def is_complete(self) -> bool:
        """Whether every picture has its record."""
        return self.captioned + self.failed == len(self._pictures)

    def requested(self) -> Iterable[CaptionItem | None]:
        """Yield the pictures. A record is expected for each picture that was yielded.

        None is yielded as long as too many pictures have begun after the first one without a
        record, for example because its server hangs: their records wait in memory.
        """
        for picture in self._pictures:
            while len(self._expected) >= self._window:
                yield None
            self._expected.append(picture.key)
            yield picture

    def deliver(self, event: ExecutorEvent) -> None:
        """Pass *event* on. A record waits until all records before it are written."""
        if not isinstance(event, CaptionRecord):
            self._on_event(event)
            return
        self._held[event.file_name] = event
        while self._expected and self._expected[0] in self._held:
            self._write(self._held.pop(self._expected.popleft()))
        if event.file_name in self._held:
            self._hold(event)

    def give_up(self, end: RunEnd) -> RunOutcome:
        """Write the finished records, even if a record before them is missing."""
        for key in self._expected:
            if key in self._held:
                self._write(self._held.pop(key))
        return RunOutcome(self.captioned, self.failed, end)

    def check_complete(self) -> None:
        """Raise a RuntimeError if the executor lost a picture, which would be a bug of ours."""
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
