"""Every executor gives each picture the record that it would get alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import pytest

from idefics_cli.caption.events import (
    BatchReduced,
    ModelLoading,
    Ready,
    RunEvent,
)
from idefics_cli.caption.executors import EXECUTORS, LocalExecutor, MakeExecutor
from idefics_cli.caption.executors.processes import process_executor
from idefics_cli.caption.executors.warm import WarmProcesses
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.runner import run_captions
from idefics_cli.core.errors import (
    ImageError,
    MemoryLimitError,
    ModelError,
    PromptError,
)
from idefics_cli.core.types import (
    CaptionRecord,
    Completion,
    GenerationRequest,
)
from idefics_cli.engine.protocol import OpenImage, Prepared
from idefics_cli.engine.protocol import Outcome as Answered
from idefics_cli.models.families.picture import PreparedPicture
from tests.support.captioning import (
    EXPECTED,
    NAMES,
    SIZES,
    RecordList,
    describe,
    photo_job,
    run_job,
    texts,
)
from tests.support.fakes import EngineOf, FakeEngine, FakeSession
from tests.support.workers import FailsAlone, TooMany, broken_model, without_libraries


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmProcesses]:
    """Starts workers in milliseconds, by a fork."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(without_libraries(tmp_path_factory.mktemp("libraries")))
        warm = WarmProcesses(0, forks=True)
    with warm:
        yield warm


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest, warm: WarmProcesses) -> MakeExecutor:
    """Every executor."""
    found = EXECUTORS[request.param]
    return partial(process_executor, warm=warm) if found is process_executor else found


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 100])
def test_any_batch_size_gives_the_captions_of_one_by_one_in_order(
    executor: MakeExecutor, batch_size: int
) -> None:
    engine = FakeEngine(describe, sizes=SIZES)

    assert texts(run_job(photo_job(batch_size=batch_size), engine, executor)) == EXPECTED
    if executor is LocalExecutor:  # other processes have copies of the engine
        assert max(engine.batches) <= batch_size
        assert engine.is_closed


def test_any_order_of_the_pictures_gives_the_same_captions(executor: MakeExecutor) -> None:
    shuffled = sorted(NAMES, key=lambda name: name[::-1])

    records = run_job(photo_job(shuffled), FakeEngine(describe, sizes=SIZES), executor)
    assert [record.file_name for record in records] == shuffled
    assert sorted(texts(records)) == EXPECTED


def test_pictures_of_one_shape_are_answered_together() -> None:
    engine = FakeEngine(describe, sizes=SIZES)
    run_job(photo_job(), engine)

    at = 0
    shapes = []
    for size in engine.batches:
        batch = engine.requests[at : at + size]
        shapes.append({SIZES[request.attachments[0].source] for request in batch})
        at += size
    assert all(len(shape) == 1 for shape in shapes[:4])
    assert len(engine.batches) == 7, "the last pictures fill batches, too"


def test_pictures_of_nearly_one_shape_fill_a_batch() -> None:
    sizes = {name: (640 + i, 480) for i, name in enumerate(NAMES)}
    engine = FakeEngine(describe, sizes=sizes)
    run_job(photo_job(batch_size=5), engine)

    assert engine.batches == [5, 5, 5, 5, 5]


def test_pictures_of_other_prompt_lengths_wait_for_a_batch_of_their_own() -> None:
    sizes = {name: (2000, 480) if i % 2 else (480, 640) for i, name in enumerate(NAMES[:4])}
    engine = FakeEngine(describe, sizes=sizes)

    assert texts(run_job(photo_job(NAMES[:4], batch_size=4), engine)) == EXPECTED[:4]
    assert engine.batches == [2, 2]


def test_a_record_has_the_size_of_the_picture_and_its_share_of_the_time() -> None:
    (record, _) = run_job(
        photo_job(NAMES[:2]), FakeEngine(describe, sizes=SIZES | {"01.jpg": (640, 480)})
    )

    assert record == CaptionRecord(
        "00.jpg",
        caption="a picture of 00.jpg",
        finish="stop",
        width=640,
        height=480,
        new_tokens=5,
        seconds=0.375,  # half of the 0.75 seconds of a batch of the fake
        prompt_tokens=13,
    )


def test_white_space_around_a_caption_is_dropped() -> None:
    (record,) = run_job(photo_job(NAMES[:1]), FakeEngine("\n a cat \n"))

    assert record.caption == "a cat"


def test_one_bad_file_changes_nothing_for_the_others(executor: MakeExecutor) -> None:
    bad = {
        "03.jpg": ImageError("cannot read `03.jpg`: truncated", kind="truncated", hint="redo it"),
        "04.jpg": ImageError("no file `04.jpg`", kind="missing"),
        "24.jpg": ModelError("a\nb"),
    }
    records = run_job(photo_job(), FakeEngine(describe, sizes=SIZES, image_errors=bad), executor)

    alone = run_job(photo_job(batch_size=1), FakeEngine(describe, sizes=SIZES))
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


def test_a_run_with_nothing_but_bad_files_ends(executor: MakeExecutor) -> None:
    bad = {name: ImageError("bad", kind="not_an_image") for name in NAMES}
    engine = FakeEngine(image_errors=bad)
    records = run_job(photo_job(), engine, executor)

    assert [(record.file_name, record.error) for record in records] == [(n, "bad") for n in NAMES]
    if executor is LocalExecutor:
        assert engine.is_closed


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_too_little_memory_gives_the_same_records_in_smaller_batches(
    executor: MakeExecutor, limit: int
) -> None:
    engine = FakeEngine(describe, sizes=SIZES, completion_error=TooMany(limit))

    records = run_job(photo_job(batch_size=8), engine, executor)
    assert texts(records) == EXPECTED


def test_the_batch_size_that_fits_is_kept_and_reported() -> None:
    engine = FakeEngine(describe, completion_error=TooMany(3))
    events: list[RunEvent] = []
    run_job(photo_job(batch_size=8), engine, on_event=events.append)

    assert [event for event in events if isinstance(event, BatchReduced)] == [BatchReduced(2)]
    assert engine.batches[:3] == [8, 4, 2]
    assert set(engine.batches[3:-1]) == {2}


def test_a_picture_that_fits_nowhere_fails_alone_and_the_batches_stay_large() -> None:
    def check(requests: Sequence[GenerationRequest]) -> Exception | None:
        big = any(request.attachments[0].source == "05.jpg" for request in requests)
        return MemoryLimitError("out of memory with 1 prompt at a time") if big else None

    engine = FakeEngine(describe, completion_error=check)
    records = run_job(photo_job(batch_size=8), engine)

    assert [record for record in records if record.error] == [
        CaptionRecord(
            "05.jpg", error="out of memory with 1 prompt at a time", error_kind="memory_limit"
        )
    ]
    assert texts(records)[:5] + texts(records)[6:] == EXPECTED[:5] + EXPECTED[6:]
    # The size of the last batch depends on how fast the threads read.
    assert engine.batches[-3:-1] == [8, 8]


@pytest.mark.parametrize("error", [PromptError("too long"), ValueError("a bug"), MemoryError()])
def test_one_bad_prompt_does_not_fail_its_batch(executor: MakeExecutor, error: Exception) -> None:
    engine = FakeEngine(describe, sizes=SIZES, completion_error=FailsAlone(error))
    records = run_job(photo_job(), engine, executor)
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
        records = run_job(photo_job(NAMES[:4]), Buggy(describe))
    assert records[2] == CaptionRecord(
        "02.jpg", error="ZeroDivisionError: division by zero", error_kind="bug"
    )
    assert [record.caption is None for record in records] == [False, False, True, False]
    assert "Traceback" in caplog.text


def test_a_model_that_does_not_load_ends_the_run_with_its_error(executor: MakeExecutor) -> None:
    before = threading.active_count()
    with pytest.raises(ModelError, match="no such model") as caught:
        run_captions(photo_job(), broken_model, RecordList().write, make_executor=executor)
    assert caught.value.hint == "another one"
    assert threading.active_count() == before


def test_what_the_model_reports_while_it_loads_is_an_event(executor: MakeExecutor) -> None:
    factory = EngineOf(FakeEngine(describe), phases=["downloading", "reading"])
    events: list[RunEvent] = []

    run_captions(
        photo_job("a"), factory, RecordList().write, on_event=events.append, make_executor=executor
    )
    assert events[:3] == [ModelLoading("downloading"), ModelLoading("reading"), Ready("0123abc")]


class Lingering(FakeSession):
    """Holds back the answer to its first request until it has given all others."""

    held: tuple[int, Answered] | None = None
    others = 0

    @property
    def room(self) -> int:
        return max(0, super().room - (self.held is not None))

    def get_outcome(self, timeout_seconds: float | None = None) -> tuple[int, Answered] | None:
        if self.held is not None and self.others == len(NAMES) - 1:
            first, self.held = self.held, None
            return first
        found = super().get_outcome(timeout_seconds)
        if found is not None and found[0] == 0:
            self.held = found
            return self.get_outcome(0)
        self.others += found is not None
        return found


def test_a_long_caption_holds_neither_a_slot_of_others_nor_their_records() -> None:
    class LingeringEngine(FakeEngine):
        def serve(self, *, slots: int, cancel: threading.Event | None = None) -> FakeSession:
            return Lingering(self, slots, cancel)

    chosen = photo_job(batch_size=2)
    done: list[str] = []
    read = 0

    def listed() -> Iterable[CaptionItem]:
        nonlocal read
        for picture in chosen.pictures:
            read += 1
            yield picture

    executor = LocalExecutor(EngineOf(LingeringEngine(describe, sizes=SIZES)), chosen)
    for event in executor.caption(listed(), threading.Event()):
        if isinstance(event, CaptionRecord):
            done.append(event.file_name)
            # These are the pictures that are opened ahead, those that are active, and those that
            # are done.
            assert read <= 2 * 4 + 2 + len(done)
    assert done[-1] == "00.jpg"
    assert sorted(done) == list(NAMES)


def test_pictures_are_opened_a_few_batches_ahead_and_no_more() -> None:
    most_ahead = 0
    has_read_ahead = threading.Event()

    class Watching(FakeEngine):
        def prepare(
            self, request: GenerationRequest, *, open_image: OpenImage | None = None
        ) -> Prepared:
            prepared = super().prepare(request, open_image=open_image)
            if len(self.prepared) == 4 * 4:
                has_read_ahead.set()
            return prepared

        def complete(
            self, batch: Sequence[Prepared], *, cancel: threading.Event | None = None
        ) -> list[Completion]:
            nonlocal most_ahead
            assert has_read_ahead.wait(timeout=30)
            most_ahead = max(most_ahead, len(self.prepared) - len(self.requests))
            return super().complete(batch, cancel=cancel)

    engine = Watching(describe)
    run_job(photo_job([f"{number:03}.jpg" for number in range(200)], batch_size=4), engine)
    assert 4 * 4 <= most_ahead <= 4 * 5
    assert len(engine.prepared) == 200


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
            prepared = super().prepare(request, open_image=open_image)
            huge = PreparedPicture(b"", (9000, 10_000), ((9000, 10_000),))
            return replace(prepared, pictures=(huge,))

    run_job(photo_job(batch_size=4), Watching(describe))
    assert most_held <= 2 + 4 + 4, "0.4 GB, the pictures being opened, and the batch itself"


def test_no_thread_is_left_after_a_run() -> None:
    before = set(threading.enumerate())
    run_job(photo_job(), FakeEngine(describe))

    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in left)


def test_no_reader_outlives_a_run() -> None:
    run_job(photo_job([f"{number}.jpg" for number in range(20)]), FakeEngine(describe))
    assert [
        thread.name for thread in threading.enumerate() if thread.name.startswith("read-")
    ] == []
