"""The runner writes the records in the order of the pictures, whatever the executor does."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence

import pytest

from idefics_cli.caption.events import (
    ExecutorEvent,
    Ready,
)
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.outcome import RunOutcome
from idefics_cli.caption.runner import run_captions
from idefics_cli.core.errors import (
    IdeficsError,
    ImageError,
)
from idefics_cli.core.types import (
    CaptionRecord,
    Completion,
    Progress,
)
from idefics_cli.engine.protocol import Engine, EngineFactory, Prepared
from tests.support.captioning import (
    EXPECTED,
    RecordList,
    describe,
    photo_job,
    texts,
)
from tests.support.fakes import EngineOf, FakeEngine


def test_no_engine_is_made_without_pictures() -> None:
    def never(*, progress: Progress | None = None) -> Engine:
        raise AssertionError

    assert run_captions(photo_job(()), never, RecordList().write) == RunOutcome(0, 0)


def test_records_are_written_as_soon_as_all_before_them_are_done() -> None:
    written_when_answered: list[int] = []
    sink = RecordList()

    class Watching(FakeEngine):
        def complete(
            self, batch: Sequence[Prepared], *, cancel: threading.Event | None = None
        ) -> list[Completion]:
            written_when_answered.append(len(sink.records))
            return super().complete(batch, cancel=cancel)

    run_captions(photo_job(), EngineOf(Watching(describe)), sink.write)
    assert written_when_answered == [0, 4, 8, 12, 16, 20, 24]


class Scripted:
    """An executor that yields or raises what a test says; a call makes the executor itself."""

    def __init__(self, *script: ExecutorEvent | BaseException) -> None:
        self._script = script
        self.is_closed = False

    def __call__(self, factory: EngineFactory, job: CaptionJob) -> Scripted:
        return self

    def caption(
        self,
        pictures: Iterable[CaptionItem | None],
        stop: threading.Event,
        *,
        progress: Progress | None = None,
    ) -> Generator[ExecutorEvent, None, None]:
        list(pictures)
        try:
            for event in self._script:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.is_closed = True


def done(name: str) -> CaptionRecord:
    return CaptionRecord(name, caption=f"a picture of {name}")


def test_records_that_come_in_any_order_are_written_in_that_of_the_pictures() -> None:
    executor = Scripted(done("c"), done("a"), Ready(), done("d"), done("b"))
    sink = RecordList()
    run_captions(photo_job("abcd"), EngineOf(FakeEngine()), sink.write, make_executor=executor)

    assert sink.records == [done(name) for name in "abcd"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), IdeficsError("the worker is gone")])
def test_what_is_finished_is_written_when_the_run_is_stopped(error: BaseException) -> None:
    executor = Scripted(done("a"), done("d"), done("c"), error)
    sink = RecordList()

    with pytest.raises(type(error)):
        run_captions(photo_job("abcd"), EngineOf(FakeEngine()), sink.write, make_executor=executor)
    assert sink.records == [done("a"), done("c"), done("d")]
    assert executor.is_closed


def test_an_output_that_breaks_stops_the_executor_at_once() -> None:
    class Broken(RecordList):
        def write(self, record: CaptionRecord) -> None:
            super().write(record)
            raise BrokenPipeError

    executor = Scripted(done("b"), done("a"), done("c"))
    sink = Broken()
    with pytest.raises(BrokenPipeError):
        run_captions(photo_job("abc"), EngineOf(FakeEngine()), sink.write, make_executor=executor)
    assert sink.records == [done("a")]
    assert executor.is_closed


def test_an_executor_that_loses_a_picture_is_a_bug_that_is_reported() -> None:
    executor = Scripted(done("a"), done("c"))
    with pytest.raises(RuntimeError, match="no record for `b`"):
        run_captions(
            photo_job("abc"), EngineOf(FakeEngine()), RecordList().write, make_executor=executor
        )


def test_a_run_ends_when_more_pictures_fail_than_it_allows() -> None:
    bad = {name: ImageError("bad", kind="truncated") for name in ("01.jpg", "05.jpg", "09.jpg")}
    for most, end in ((0, "failures"), (1, "failures"), (2, "failures"), (3, "done")):
        engine = FakeEngine(describe, image_errors=bad)
        outcome = run_captions(
            photo_job(batch_size=1), EngineOf(engine), RecordList().write, max_failures=most
        )
        assert (outcome.end, outcome.failed) == (end, min(3, most + 1))
        assert engine.is_closed


def test_a_run_in_another_thread_is_a_run() -> None:
    sink = RecordList()
    thread = threading.Thread(
        target=run_captions, args=(photo_job(), EngineOf(FakeEngine(describe)), sink.write)
    )
    thread.start()
    thread.join(timeout=30)
    assert texts(sink.records) == EXPECTED
