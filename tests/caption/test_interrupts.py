"""Ctrl-C and SIGTERM in a run: the first finishes the batch, the second ends it at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence

import pytest

from idefics_cli.caption.events import (
    RunEvent,
    Stopping,
)
from idefics_cli.caption.executors import LocalExecutor, MakeExecutor
from idefics_cli.caption.outcome import RunOutcome
from idefics_cli.caption.runner import run_captions
from idefics_cli.core.types import (
    CaptionRecord,
    Completion,
    GenerationRequest,
    Progress,
)
from idefics_cli.engine.protocol import Engine, OpenImage, Prepared
from tests.support.captioning import (
    EXPECTED,
    NAMES,
    RecordList,
    describe,
    photo_job,
    run_job,
    texts,
)
from tests.support.fakes import EngineOf, FakeEngine


@pytest.mark.parametrize("executor", [LocalExecutor])
def test_an_interrupt_in_the_model_cancels_and_closes_it(executor: MakeExecutor) -> None:
    seen: list[threading.Event | None] = []

    class Interrupted(FakeEngine):
        def complete(
            self, batch: Sequence[Prepared], *, cancel: threading.Event | None = None
        ) -> list[Completion]:
            seen.append(cancel)
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().complete(batch, cancel=cancel)

    engine = Interrupted(describe)
    sink = RecordList()
    with pytest.raises(KeyboardInterrupt):
        run_captions(photo_job(), EngineOf(engine), sink.write, make_executor=executor)
    assert texts(sink.records) == EXPECTED[:8]
    assert engine.is_closed
    assert all(cancel is not None and cancel.is_set() for cancel in seen)


class Pressed(FakeEngine):
    """Gets Ctrl-C *presses* times, or another signal, when it begins its second batch."""

    def __init__(self, presses: int, number: signal.Signals = signal.SIGINT) -> None:
        super().__init__(describe)
        self._presses, self._number = presses, number

    def complete(
        self, batch: Sequence[Prepared], *, cancel: threading.Event | None = None
    ) -> list[Completion]:
        for _ in range(self._presses if len(self.batches) == 1 else 0):
            signal.raise_signal(self._number)
        return super().complete(batch, cancel=cancel)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_the_first_signal_the_current_batch_is_finished_and_written(
    number: signal.Signals,
) -> None:
    engine, sink = Pressed(1, number), RecordList()
    events: list[RunEvent] = []

    outcome = run_captions(photo_job(), EngineOf(engine), sink.write, on_event=events.append)
    assert outcome == RunOutcome(8, 0, "interrupted")
    assert texts(sink.records) == EXPECTED[:8]
    assert events.count(Stopping()) == 1
    assert engine.is_closed
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


def test_a_second_ctrl_c_ends_the_run_at_once() -> None:
    engine, sink = Pressed(2), RecordList()

    with pytest.raises(KeyboardInterrupt):
        run_captions(photo_job(), EngineOf(engine), sink.write)
    assert texts(sink.records) == EXPECTED[:4]
    assert engine.batches == [4]
    assert engine.is_closed


def test_ctrl_c_in_the_last_batch_is_no_interruption() -> None:
    engine, sink = Pressed(1), RecordList()

    assert run_captions(photo_job(NAMES[:8]), EngineOf(engine), sink.write) == RunOutcome(8, 0)


def test_ctrl_c_while_the_model_loads_ends_the_run_at_once() -> None:
    def loading(*, progress: Progress | None = None) -> Engine:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("loaded to the end")

    with pytest.raises(KeyboardInterrupt):
        run_captions(photo_job(), loading, RecordList().write)


@pytest.mark.parametrize("presses", [1, 2, 3])
def test_ctrl_c_while_a_record_is_written_waits_for_it_twice(presses: int) -> None:
    events: list[RunEvent] = []

    class Pressing(RecordList):
        def write(self, record: CaptionRecord) -> None:
            if record.file_name == "02.jpg":
                for _ in range(presses):
                    signal.raise_signal(signal.SIGINT)
            super().write(record)

    engine = FakeEngine(describe)
    sink = Pressing()
    if presses == 1:
        run_captions(photo_job(), EngineOf(engine), sink.write, on_event=events.append)
    else:
        with pytest.raises(KeyboardInterrupt):
            run_captions(photo_job(), EngineOf(engine), sink.write, on_event=events.append)
    # After one press, the batch of the record is finished, and perhaps the next one, which the
    # model may have begun. The third press does not even wait for the row.
    written = len(sink.records)
    assert written in {1: (4, 8), 2: (3,), 3: (2,)}[presses]
    assert texts(sink.records) == EXPECTED[:written]
    assert [event for event in events if isinstance(event, CaptionRecord)] == sink.records
    assert engine.is_closed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_is_handled_elsewhere_or_ignored_is_left_alone() -> None:
    class Pressing(RecordList):
        def write(self, record: CaptionRecord) -> None:
            signal.raise_signal(signal.SIGINT)
            super().write(record)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sink = Pressing()
        run_captions(photo_job(), EngineOf(FakeEngine(describe)), sink.write)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert texts(sink.records) == EXPECTED


def test_a_reader_that_hangs_does_not_hold_back_an_interrupt() -> None:
    release = threading.Event()

    class Slow(FakeEngine):
        def prepare(
            self, request: GenerationRequest, *, open_image: OpenImage | None = None
        ) -> Prepared:
            if request.attachments[0].source == "09.jpg":
                release.wait(30)
            return super().prepare(request, open_image=open_image)

        def complete(
            self, batch: Sequence[Prepared], *, cancel: threading.Event | None = None
        ) -> list[Completion]:
            raise KeyboardInterrupt

    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run_job(photo_job(batch_size=2), Slow(describe))
    release.set()
    assert time.perf_counter() - started < 10
