"""A run gives each picture the record that it would get alone, whatever its neighbours do."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.caption.events import (
    BatchReduced,
    ExecutorEvent,
    ModelLoading,
    Ready,
    RunEvent,
    Stopping,
)
from idefics_cli.caption.executors import EXECUTORS, LocalExecutor, MakeExecutor
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, CaptionQuestion, automatic_batch_size
from idefics_cli.caption.outcome import RunOutcome
from idefics_cli.caption.runner import run_captions
from idefics_cli.core.errors import (
    IdeficsError,
    ImageError,
    MemoryLimitError,
    ModelError,
    PromptError,
)
from idefics_cli.core.types import (
    Attachment,
    CaptionRecord,
    Completion,
    GenerationRequest,
    Message,
    Progress,
    Sampling,
)
from idefics_cli.engine.protocol import Engine, EngineFactory, OpenImage, Prepared
from idefics_cli.engine.protocol import Outcome as Answered
from idefics_cli.models.families import picture as shown
from idefics_cli.models.families.base import digest_of
from tests.support.fakes import EngineOf, FakeEngine, FakeSession

every_executor = pytest.mark.parametrize("executor", EXECUTORS.values(), ids=EXECUTORS)
NAMES = tuple(f"{number:02}.jpg" for number in range(25))
SIZES = {name: [(640, 480), (480, 640), (800, 200)][i * i % 3] for i, name in enumerate(NAMES)}


class ListSink:
    """Keeps the records that are written."""

    def __init__(self) -> None:
        self.records: list[CaptionRecord] = []

    def write(self, record: CaptionRecord) -> None:
        self.records.append(record)


def describe(request: GenerationRequest) -> str:
    return f"a picture of {request.attachments[0].source}"


def job(
    names: Sequence[str] = NAMES, *, batch_size: int = 4, sampling: Sampling | None = None
) -> CaptionJob:
    return CaptionJob(
        pictures=tuple(CaptionItem(name, Attachment(name)) for name in names),
        questions=(CaptionQuestion("Describe this image."),),
        sampling=sampling or Sampling(),
        batch_size=batch_size,
        readers=3,
        patience_seconds=60,
    )


def run(
    job: CaptionJob, engine: Engine, executor: MakeExecutor = LocalExecutor
) -> list[CaptionRecord]:
    sink = ListSink()
    run_captions(job, EngineOf(engine), sink.write, make_executor=executor)
    return sink.records


def texts(records: Iterable[CaptionRecord]) -> list[tuple[str, str | None]]:
    return [(record.file_name, record.caption) for record in records]


EXPECTED = [(name, f"a picture of {name}") for name in NAMES]


@every_executor
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 100])
def test_any_batch_size_gives_the_captions_of_one_by_one_in_order(
    executor: MakeExecutor, batch_size: int
) -> None:
    engine = FakeEngine(describe, sizes=SIZES)

    assert texts(run(job(batch_size=batch_size), engine, executor)) == EXPECTED
    assert max(engine.batches) <= batch_size
    assert engine.is_closed


@every_executor
def test_any_order_of_the_pictures_gives_the_same_captions(executor: MakeExecutor) -> None:
    shuffled = sorted(NAMES, key=lambda name: name[::-1])

    records = run(job(shuffled), FakeEngine(describe, sizes=SIZES), executor)
    assert [record.file_name for record in records] == shuffled
    assert sorted(texts(records)) == EXPECTED


def test_pictures_of_one_shape_are_answered_together() -> None:
    engine = FakeEngine(describe, sizes=SIZES)
    run(job(), engine)

    at = 0
    shapes = []
    for size in engine.batches:
        batch = engine.requests[at : at + size]
        shapes.append({SIZES[request.attachments[0].source] for request in batch})
        at += size
    assert all(len(shape) == 1 for shape in shapes[:4])
    assert len(engine.batches) == 7, "what is left at the end fills batches too"


def test_pictures_of_nearly_one_shape_fill_a_batch() -> None:
    sizes = {name: (640 + i, 480) for i, name in enumerate(NAMES)}
    engine = FakeEngine(describe, sizes=sizes)
    run(job(batch_size=5), engine)

    assert engine.batches == [5, 5, 5, 5, 5]


def test_pictures_of_other_prompt_lengths_wait_for_a_batch_of_their_own() -> None:
    sizes = {name: (2000, 480) if i % 2 else (480, 640) for i, name in enumerate(NAMES[:4])}
    engine = FakeEngine(describe, sizes=sizes)

    assert texts(run(job(NAMES[:4], batch_size=4), engine)) == EXPECTED[:4]
    assert engine.batches == [2, 2]


def test_a_record_tells_the_size_that_a_person_sees_and_its_share_of_the_time() -> None:
    (record, _) = run(job(NAMES[:2]), FakeEngine(describe, sizes=SIZES | {"01.jpg": (640, 480)}))

    assert record == CaptionRecord(
        "00.jpg",
        caption="a picture of 00.jpg",
        finish="stop",
        width=640,
        height=480,
        new_tokens=5,
        seconds=0.375,  # half of the 0.75 that the fake takes for a batch
    )


def test_white_space_around_a_caption_is_dropped() -> None:
    (record,) = run(job(NAMES[:1]), FakeEngine("\n a cat \n"))

    assert record.caption == "a cat"


@every_executor
def test_one_bad_file_changes_nothing_for_the_others(executor: MakeExecutor) -> None:
    bad = {
        "03.jpg": ImageError("cannot read `03.jpg`: truncated", kind="truncated", hint="redo it"),
        "04.jpg": ImageError("no file `04.jpg`", kind="missing"),
        "24.jpg": ModelError("a\nb"),
    }
    records = run(job(), FakeEngine(describe, sizes=SIZES, image_errors=bad), executor)

    alone = run(job(batch_size=1), FakeEngine(describe, sizes=SIZES))
    assert [replace(r, seconds=0) for r in records if r.caption] == [
        replace(r, seconds=0) for r in alone if r.file_name not in bad
    ]
    assert [r for r in records if r.error] == [
        CaptionRecord(
            "03.jpg",
            error="cannot read `03.jpg`: truncated",
            error_kind="truncated",
            hint="redo it",
        ),
        CaptionRecord("04.jpg", error="no file `04.jpg`", error_kind="missing"),
        CaptionRecord("24.jpg", error="a b", error_kind="model"),
    ]
    assert [r.file_name for r in records] == list(NAMES)


@every_executor
def test_a_run_of_bad_files_only_ends(executor: MakeExecutor) -> None:
    bad = {name: ImageError("bad", kind="not_an_image") for name in NAMES}
    engine = FakeEngine(image_errors=bad)
    sink = ListSink()

    assert run_captions(job(), EngineOf(engine), sink.write, make_executor=executor) == RunOutcome(
        0, 25
    )
    assert [record.file_name for record in sink.records] == list(NAMES)
    assert engine.is_closed


def too_many(limit: int) -> Callable[[Sequence[GenerationRequest]], Exception | None]:
    def check(requests: Sequence[GenerationRequest]) -> Exception | None:
        return MemoryLimitError("out of memory") if len(requests) > limit else None

    return check


@every_executor
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_too_little_memory_gives_the_same_records_in_smaller_batches(
    executor: MakeExecutor, limit: int
) -> None:
    engine = FakeEngine(describe, sizes=SIZES, completion_error=too_many(limit))

    records = run(job(batch_size=8), engine, executor)
    assert texts(records) == EXPECTED


def test_the_batch_size_that_works_is_kept_and_told() -> None:
    engine = FakeEngine(describe, completion_error=too_many(3))
    events: list[RunEvent] = []
    run_captions(job(batch_size=8), EngineOf(engine), ListSink().write, on_event=events.append)

    assert [event for event in events if isinstance(event, BatchReduced)] == [BatchReduced(2)]
    assert engine.batches[:3] == [8, 4, 2]
    assert set(engine.batches[3:-1]) == {2}


def test_a_picture_that_fits_nowhere_fails_alone_and_the_batches_stay_large() -> None:
    def check(requests: Sequence[GenerationRequest]) -> Exception | None:
        big = any(request.attachments[0].source == "05.jpg" for request in requests)
        return MemoryLimitError("out of memory with 1 prompt at a time") if big else None

    engine = FakeEngine(describe, completion_error=check)
    records = run(job(batch_size=8), engine)

    assert [record for record in records if record.error] == [
        CaptionRecord(
            "05.jpg", error="out of memory with 1 prompt at a time", error_kind="memory_limit"
        )
    ]
    assert texts(records)[:5] + texts(records)[6:] == EXPECTED[:5] + EXPECTED[6:]
    # The last is what is left: how many, depends on who is faster.
    assert engine.batches[-3:-1] == [8, 8]


@every_executor
@pytest.mark.parametrize("error", [PromptError("too long"), ValueError("a bug"), MemoryError()])
def test_one_bad_prompt_does_not_fail_its_batch(executor: MakeExecutor, error: Exception) -> None:
    def check(requests: Sequence[GenerationRequest]) -> Exception | None:
        bad = any(request.attachments[0].source == "05.jpg" for request in requests)
        return error if bad else None

    records = run(job(), FakeEngine(describe, sizes=SIZES, completion_error=check), executor)
    assert [record.file_name for record in records if record.error] == ["05.jpg"]
    assert [t for t in texts(records) if t[1]] == [t for t in EXPECTED if t[0] != "05.jpg"]


def test_a_bug_in_a_reader_becomes_a_record_and_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Buggy(FakeEngine):
        def prepare(
            self, request: GenerationRequest, *, open_image: OpenImage | None = None
        ) -> Prepared:
            if request.attachments[0].source == "02.jpg":
                raise ZeroDivisionError("division\nby zero")
            return super().prepare(request, open_image=open_image)

    with caplog.at_level(logging.DEBUG):
        records = run(job(NAMES[:4]), Buggy(describe))
    assert records[2] == CaptionRecord(
        "02.jpg", error="ZeroDivisionError: division by zero", error_kind="bug"
    )
    assert [record.caption is None for record in records] == [False, False, True, False]
    assert "Traceback" in caplog.text


@every_executor
def test_a_model_that_does_not_load_ends_the_run_with_its_error(executor: MakeExecutor) -> None:
    def broken(*, progress: Progress | None = None) -> Engine:
        raise ModelError("no such model")

    before = threading.active_count()
    with pytest.raises(ModelError, match="no such model"):
        run_captions(job(), broken, ListSink().write, make_executor=executor)
    assert threading.active_count() == before


@every_executor
def test_what_the_model_reports_while_it_loads_is_an_event(executor: MakeExecutor) -> None:
    factory = EngineOf(FakeEngine(describe), phases=["downloading", "reading"])
    events: list[RunEvent] = []

    run_captions(
        job("a"), factory, ListSink().write, on_event=events.append, make_executor=executor
    )
    assert events[:3] == [ModelLoading("downloading"), ModelLoading("reading"), Ready("0123abc")]


def test_no_engine_is_made_without_pictures() -> None:
    def never(*, progress: Progress | None = None) -> Engine:
        raise AssertionError

    assert run_captions(job(()), never, ListSink().write) == RunOutcome(0, 0)


def test_records_are_written_as_soon_as_all_before_them_are_done() -> None:
    written_when_answered: list[int] = []
    sink = ListSink()

    class Watching(FakeEngine):
        def complete(
            self, batch: Sequence[Prepared], *, cancel: threading.Event | None = None
        ) -> list[Completion]:
            written_when_answered.append(len(sink.records))
            return super().complete(batch, cancel=cancel)

    run_captions(job(), EngineOf(Watching(describe)), sink.write)
    assert written_when_answered == [0, 4, 8, 12, 16, 20, 24]


class Lingering(FakeSession):
    """Holds the answer to its first request until it has given all the others."""

    held: tuple[int, Answered] | None = None
    others = 0

    @property
    def room(self) -> int:
        return max(0, super().room - (self.held is not None))

    def get_outcome(self, timeout_seconds: float | None = None) -> tuple[int, Answered] | None:
        if self.held is not None and self.others == len(NAMES) - 1:
            found, self.held = self.held, None
            return found
        got = super().get_outcome(timeout_seconds)
        if got is not None and got[0] == 0:
            self.held = got
            return self.get_outcome(0)
        self.others += got is not None
        return got


def test_a_long_caption_holds_neither_a_slot_of_others_nor_their_records() -> None:
    class Engine_(FakeEngine):
        def serve(self, *, slots: int, cancel: threading.Event | None = None) -> FakeSession:
            return Lingering(self, slots, cancel)

    chosen = job(batch_size=2)
    done: list[str] = []
    read = 0

    def listed() -> Iterable[CaptionItem]:
        nonlocal read
        for picture in chosen.pictures:
            read += 1
            yield picture

    events = LocalExecutor(EngineOf(Engine_(describe, sizes=SIZES)), chosen).caption(
        listed(), threading.Event()
    )
    for event in events:
        if isinstance(event, CaptionRecord):
            done.append(event.file_name)
            # Open ahead, in the works, and done.
            assert read <= 2 * 4 + 2 + len(done)
    assert done[-1] == "00.jpg"
    assert sorted(done) == list(NAMES)


def test_pictures_are_opened_a_few_batches_ahead_and_no_more() -> None:
    most_ahead = 0
    made: list[FakeEngine] = []

    class Watching(FakeEngine):
        def complete(
            self, batch: Sequence[Prepared], *, cancel: threading.Event | None = None
        ) -> list[Completion]:
            nonlocal most_ahead
            time.sleep(0.001)  # readers get on meanwhile
            most_ahead = max(most_ahead, len(self.prepared) - len(self.requests))
            return super().complete(batch, cancel=cancel)

    def factory(*, progress: Progress | None = None) -> Engine:
        made.append(Watching(describe))
        return made[-1]

    names = [f"{number:03}.jpg" for number in range(200)]
    run_captions(job(names, batch_size=4), factory, ListSink().write)
    assert 4 < most_ahead <= 4 * 5
    assert len(made[0].prepared) == 200


def test_few_big_pictures_are_held_open_at_a_time() -> None:
    most_held = 0

    class Watching(FakeEngine):
        def complete(
            self, batch: Sequence[Prepared], *, cancel: threading.Event | None = None
        ) -> list[Completion]:
            nonlocal most_held
            most_held = max(most_held, len(self.prepared) - len(self.requests))
            return super().complete(batch, cancel=cancel)

        def prepare(
            self, request: GenerationRequest, *, open_image: OpenImage | None = None
        ) -> Prepared:
            with self._lock:
                self.prepared.append(request)
            return Prepared(
                request, (shown.PreparedPicture(b"", (9000, 10_000), ((9000, 10_000),)),)
            )

    run_captions(job(batch_size=4), EngineOf(Watching(describe)), ListSink().write)
    assert most_held <= 2 + 4 + 4, "0.4 GB, what is being opened, and the batch itself"


class Scripted:
    """An executor that does what a test says, and what makes it."""

    def __init__(self, *script: ExecutorEvent | BaseException) -> None:
        self._script = script
        self.is_closed = False

    def __call__(self, factory: EngineFactory, job: CaptionJob) -> Scripted:
        return self

    def caption(
        self,
        pictures: Iterable[CaptionItem],
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
    sink = ListSink()
    run_captions(job("abcd"), EngineOf(FakeEngine()), sink.write, make_executor=executor)

    assert sink.records == [done(name) for name in "abcd"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), IdeficsError("the worker is gone")])
def test_what_is_finished_is_written_when_the_run_is_stopped(error: BaseException) -> None:
    executor = Scripted(done("a"), done("d"), done("c"), error)
    sink = ListSink()

    with pytest.raises(type(error)):
        run_captions(job("abcd"), EngineOf(FakeEngine()), sink.write, make_executor=executor)
    assert sink.records == [done("a"), done("c"), done("d")]
    assert executor.is_closed


def test_an_output_that_breaks_stops_the_executor_at_once() -> None:
    class Broken(ListSink):
        def write(self, record: CaptionRecord) -> None:
            super().write(record)
            raise BrokenPipeError

    executor = Scripted(done("b"), done("a"), done("c"))
    sink = Broken()
    with pytest.raises(BrokenPipeError):
        run_captions(job("abc"), EngineOf(FakeEngine()), sink.write, make_executor=executor)
    assert sink.records == [done("a")]
    assert executor.is_closed


def test_an_executor_that_loses_a_picture_is_found_out() -> None:
    executor = Scripted(done("a"), done("c"))
    with pytest.raises(RuntimeError, match="no record for `b`"):
        run_captions(job("abc"), EngineOf(FakeEngine()), ListSink().write, make_executor=executor)


@every_executor
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
    sink = ListSink()
    with pytest.raises(KeyboardInterrupt):
        run_captions(job(), EngineOf(engine), sink.write, make_executor=executor)
    assert texts(sink.records) == EXPECTED[:8]
    assert engine.is_closed
    assert all(cancel is not None and cancel.is_set() for cancel in seen)


class Pressed(FakeEngine):
    """Gets *presses* of Ctrl-C, or another signal, when it begins its second batch."""

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
def test_the_first_signal_lets_the_batch_in_the_works_be_finished_and_written(
    number: signal.Signals,
) -> None:
    engine, sink = Pressed(1, number), ListSink()
    events: list[RunEvent] = []

    outcome = run_captions(job(), EngineOf(engine), sink.write, on_event=events.append)
    assert outcome == RunOutcome(8, 0, "interrupted")
    assert texts(sink.records) == EXPECTED[:8]
    assert events.count(Stopping()) == 1
    assert engine.is_closed
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


def test_a_second_ctrl_c_ends_the_run_at_once() -> None:
    engine, sink = Pressed(2), ListSink()

    with pytest.raises(KeyboardInterrupt):
        run_captions(job(), EngineOf(engine), sink.write)
    assert texts(sink.records) == EXPECTED[:4]
    assert engine.batches == [4]
    assert engine.is_closed


def test_ctrl_c_in_the_last_batch_is_no_interruption() -> None:
    engine, sink = Pressed(1), ListSink()

    assert run_captions(job(NAMES[:8]), EngineOf(engine), sink.write) == RunOutcome(8, 0)


def test_ctrl_c_while_the_model_loads_ends_the_run_at_once() -> None:
    def loading(*, progress: Progress | None = None) -> Engine:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("loaded to the end")

    with pytest.raises(KeyboardInterrupt):
        run_captions(job(), loading, ListSink().write)


@pytest.mark.parametrize("presses", [1, 2, 3])
def test_ctrl_c_while_a_record_is_written_waits_for_it_twice(presses: int) -> None:
    told: list[RunEvent] = []

    class Pressing(ListSink):
        def write(self, record: CaptionRecord) -> None:
            if record.file_name == "02.jpg":
                for _ in range(presses):
                    signal.raise_signal(signal.SIGINT)
            super().write(record)

    engine = FakeEngine(describe)
    sink = Pressing()
    if presses == 1:
        run_captions(job(), EngineOf(engine), sink.write, on_event=told.append)
    else:
        with pytest.raises(KeyboardInterrupt):
            run_captions(job(), EngineOf(engine), sink.write, on_event=told.append)
    # The batch of the record is done, and that which the model may have got meanwhile; the third
    # press does not even wait for its row.
    written = len(sink.records)
    assert written in {1: (4, 8), 2: (3,), 3: (2,)}[presses]
    assert texts(sink.records) == EXPECTED[:written]
    assert [event for event in told if isinstance(event, CaptionRecord)] == sink.records
    assert engine.is_closed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_ends_when_more_pictures_fail_than_it_is_to_stand() -> None:
    bad = {name: ImageError("bad", kind="truncated") for name in ("01.jpg", "05.jpg", "09.jpg")}
    for most, end in ((0, "failures"), (1, "failures"), (2, "failures"), (3, "done")):
        engine = FakeEngine(describe, image_errors=bad)
        outcome = run_captions(
            job(batch_size=1), EngineOf(engine), ListSink().write, max_failures=most
        )
        assert (outcome.end, outcome.failed) == (end, min(3, most + 1))
        assert engine.is_closed


def test_ctrl_c_that_is_handled_elsewhere_or_ignored_is_left_alone() -> None:
    class Pressing(ListSink):
        def write(self, record: CaptionRecord) -> None:
            signal.raise_signal(signal.SIGINT)
            super().write(record)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sink = Pressing()
        run_captions(job(), EngineOf(FakeEngine(describe)), sink.write)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert texts(sink.records) == EXPECTED


def test_a_run_in_another_thread_is_a_run() -> None:
    sink = ListSink()
    thread = threading.Thread(
        target=run_captions, args=(job(), EngineOf(FakeEngine(describe)), sink.write)
    )
    thread.start()
    thread.join(timeout=30)
    assert texts(sink.records) == EXPECTED


def test_no_thread_is_left_after_a_run() -> None:
    before = set(threading.enumerate())
    run(job(), FakeEngine(describe))

    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in left)


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
        run(job(batch_size=2), Slow(describe))
    release.set()
    assert time.perf_counter() - started < 10


class PixelEngine(FakeEngine):
    """Opens the picture itself, and says which seed it got."""

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        with Image.open(request.attachments[0].source) as image:
            digest = digest_of([image.convert("RGB")])
        return Prepared(request, (shown.PreparedPicture(digest, (8, 8), ((8, 8),)),))


def seeded(folder: Path, names: Sequence[str], seed: int, **sampling: float) -> dict[str, str]:
    paths = [str(folder / name) for name in names]
    settings = Sampling(**{"temperature": 1.0, "seed": seed} | sampling)  # type: ignore[arg-type] # ours
    engine = PixelEngine(lambda request: f"seed {request.sampling.seed}")
    records = run(job(paths, batch_size=len(names) // 2 or 1, sampling=settings), engine)
    return {Path(r.file_name).name: r.caption or "" for r in records}


def test_the_seed_of_a_picture_depends_on_its_content_and_the_seed_of_the_run(
    tmp_path: Path,
) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue"), ("copy of a.png", "red")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)

    one = seeded(tmp_path, ["a.png", "b.png", "copy of a.png"], 1)
    assert one["a.png"] == one["copy of a.png"] != one["b.png"]
    assert seeded(tmp_path, ["b.png", "a.png"], 1) == {k: one[k] for k in ("a.png", "b.png")}
    assert seeded(tmp_path, ["a.png"], 2)["a.png"] != one["a.png"]


def test_a_greedy_run_has_the_seed_that_was_given(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    assert seeded(tmp_path, ["a.png"], 7, temperature=0.0) == {"a.png": "seed 7"}


def test_a_request_has_the_picture_before_the_prompt() -> None:
    chat = job(["a.jpg"])
    (picture,) = chat.pictures
    (request,) = chat.requests(picture)
    assert picture.key == "a.jpg"
    assert request == GenerationRequest(
        (Message("user", (Attachment("a.jpg"), "Describe this image.")),), Sampling(), "chat"
    )

    base = CaptionJob(chat.pictures, (CaptionQuestion("In this image,"),), mode="complete")
    (request,) = base.requests(picture)
    assert request.messages == (Message("user", (Attachment("a.jpg"), " In this image,")),)
    assert request.mode == "complete"


GIB = 2**30


@pytest.mark.parametrize(
    ("device", "parameters", "spare_bytes", "expected"),
    [
        ("cuda:1", 8_000_000_000, 60 * GIB, 16),
        ("cuda", 8_000_000_000, 10 * GIB, 6),
        ("cuda", 8_000_000_000, GIB, 1),
        ("cpu", 500_000_000, 60 * GIB, 16),
        ("cpu", 2_000_000_000, 60 * GIB, 8),
        ("cpu", 500_000_000, 10 * GIB, 3),
        ("cpu", 8_000_000_000, 60 * GIB, 4),
        ("mps", 8_000_000_000, 0, 1),
        ("cpu", 8_000_000_000, -GIB, 1),
    ],
)
def test_the_automatic_batch_fits_the_spare_memory_and_more_so_where_none_is_checked(
    device: str, parameters: int, spare_bytes: int, expected: int
) -> None:
    size = automatic_batch_size(device, parameters, spare_bytes=spare_bytes, picture_bytes=2 * GIB)
    assert size == expected


def test_no_reader_outlives_a_run() -> None:
    run(job([f"{number}.jpg" for number in range(20)]), FakeEngine(describe))
    assert [
        thread.name for thread in threading.enumerate() if thread.name.startswith("read-")
    ] == []
