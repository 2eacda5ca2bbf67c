"""Workers share the pictures of a run: one that dies is replaced, and no picture is lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest

from idefics_cli.caption.events import ExecutorEvent, Ready, WorkerGone, WorkerLost, WorkerShares
from idefics_cli.caption.executors.remote import RemoteExecutor
from idefics_cli.caption.executors.worker_protocol import (
    Hire,
    Inbox,
    WorkerEnded,
    WorkerLoading,
)
from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.errors import IdeficsError, ModelError
from idefics_cli.core.types import CaptionRecord
from tests.support.captioning import NAMES, describe_key, photo_job

BATCH = 2


@dataclass
class Staff:
    """Workers in this process, which answer at once and die as a test says.

    Attributes:
        deadly: Keys of pictures with which a worker dies.
        dies_first: This many workers die when they get their first pictures.
        error: The error of a worker that cannot load, by the name of its place.
        commits: Another commit of the model that a worker loads, by the name of its place.
        is_slow: Whether workers answer a moment later.
        waits: Whether slow workers answer only after a call of `stop`.
        on_add: Called when a worker has got pictures.
        hired: The name of the place of each worker that was started.
        given: The keys of each call of `add`.
        most_open: The largest number of pictures that a worker had.
        workers: All workers.
    """

    deadly: Sequence[str] = ()
    dies_first: int = 0
    error: dict[str, IdeficsError | str] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    is_slow: bool = False
    waits: bool = False
    on_add: Callable[[], None] = lambda: None
    hired: list[str] = field(default_factory=list)
    given: list[tuple[str, ...]] = field(default_factory=list)
    most_open: int = 0
    workers: list[FakeWorker] = field(default_factory=list)

    def hires(self, *names: str) -> list[Hire]:
        """Return places of these names."""
        return [Hire(name, partial(self.start, name)) for name in names]

    def start(self, name: str, inbox: Inbox) -> FakeWorker:
        """Start a worker."""
        self.hired.append(name)
        worker = FakeWorker(self, name, inbox)
        self.workers.append(worker)
        error = self.error.get(name)
        if error is None:
            inbox.put((worker, Ready(self.commits.get(name, "0123abc"))))
        elif isinstance(error, str):
            inbox.put((worker, WorkerEnded(error)))
        else:
            inbox.put((worker, WorkerEnded(error=error)))
        return worker


class FakeWorker:
    """A worker of `Staff`."""

    def __init__(self, staff: Staff, name: str, inbox: Inbox) -> None:
        self._staff, self._name, self._inbox = staff, name, inbox
        self.held: list[CaptionItem] = []
        self.is_dead = self.was_killed = False

    def add(self, pictures: Sequence[CaptionItem]) -> None:
        """Answer *pictures* in turn, until one kills it."""
        self._staff.given.append(tuple(picture.key for picture in pictures))
        self.held += pictures
        self._staff.on_add()
        self._staff.most_open = max(self._staff.most_open, len(self.held))
        if not self._staff.is_slow:
            self.release()
        elif not self._staff.waits:
            threading.Timer(0.01, self.release).start()

    def release(self) -> None:
        """Answer what it has."""
        if self._staff.dies_first and self.held:
            self._staff.dies_first -= 1
            self._die()
        while self.held and not self.is_dead:
            picture = self.held.pop(0)
            if picture.key in self._staff.deadly:
                self._die()
                return
            self._inbox.put((self, CaptionRecord(picture.key, caption=describe_key(picture.key))))

    def stop(self) -> None:
        """Answer one batch, and end."""
        del self.held[BATCH:]
        self.release()
        self._inbox.put((self, WorkerEnded()))

    def kill(self) -> None:
        """Note that it was killed."""
        self.was_killed = True

    def _die(self) -> None:
        self.is_dead = True
        self._inbox.put((self, WorkerEnded("killed by SIGKILL")))


def run(
    staff: Staff,
    *names: str,
    keys: Sequence[str] = NAMES,
    on_event: Callable[[ExecutorEvent], None] = lambda event: None,
    stop: threading.Event | None = None,
) -> tuple[dict[str, CaptionRecord], list[ExecutorEvent]]:
    """Return the records by key, and the other events."""
    hires = staff.hires(*(names or ("a", "b")))
    executor = RemoteExecutor(hires, batch_size=BATCH, total=len(keys))
    records: dict[str, CaptionRecord] = {}
    events: list[ExecutorEvent] = []
    for event in executor.caption(photo_job(keys).pictures, stop or threading.Event()):
        on_event(event)
        if isinstance(event, CaptionRecord):
            assert event.file_name not in records, "a picture has one record"
            records[event.file_name] = event
        else:
            events.append(event)
    return records, events


def test_every_picture_is_captioned_once_and_both_workers_have_their_part() -> None:
    staff = Staff()
    records, events = run(staff)
    assert {k: r.caption for k, r in records.items()} == {n: describe_key(n) for n in NAMES}
    assert events.count(Ready("0123abc")) == 1
    (shares,) = [event for event in events if isinstance(event, WorkerShares)][-1:]
    assert sum(count for _, count in shares.done) == len(NAMES)
    assert min(count for _, count in shares.done) > len(NAMES) // 4
    assert all(worker.was_killed for worker in staff.workers)


def test_a_worker_has_a_few_batches_and_the_first_one_does_not_take_all_pictures() -> None:
    staff = Staff(is_slow=True)
    names = [f"{number}.jpg" for number in range(200)]

    records, _ = run(staff, keys=names[:30])
    assert len(records) == 30
    assert staff.most_open <= 4 * BATCH


@pytest.mark.parametrize(("count", "first"), [(1, 1), (2, 1), (5, 3), (8, 4), (30, 4)])
def test_a_worker_never_has_more_than_its_share_of_what_is_left(count: int, first: int) -> None:
    staff = Staff(is_slow=True)
    records, _ = run(staff, keys=[f"{number}.jpg" for number in range(count)])
    assert len(records) == count
    assert len(staff.given[0]) == first


def test_a_worker_that_dies_is_replaced_and_its_pictures_are_tried_alone() -> None:
    staff = Staff(dies_first=1)
    records, events = run(staff)
    assert sorted(records) == sorted(NAMES)
    assert not [record for record in records.values() if record.error]
    (lost,) = [event for event in events if isinstance(event, WorkerLost)]
    assert lost.reason == "killed by SIGKILL"
    assert lost.count >= 1
    assert sorted(staff.hired) == sorted(["a", "b", lost.name])
    again = [keys for keys in staff.given if len(keys) == 1]
    assert len(again) >= lost.count, "each picture of the dead worker was alone with one"


def test_a_picture_that_kills_two_workers_is_a_failure_and_the_others_are_captioned() -> None:
    staff = Staff(deadly=["07.jpg", "19.jpg"])
    records, _ = run(staff)
    assert sorted(records) == sorted(NAMES)
    failed = {key: record for key, record in records.items() if record.error}
    assert sorted(failed) == ["07.jpg", "19.jpg"]
    assert failed["07.jpg"] == CaptionRecord(
        "07.jpg",
        error="two workers died with `07.jpg`: killed by SIGKILL",
        error_kind="worker_died",
        hint="`--retry-failed` tries it again",
    )
    asked = Counter(key for keys in staff.given for key in keys)
    assert (asked["07.jpg"], asked["19.jpg"]) == (2, 2)
    assert len(staff.hired) == 2 + 4


def test_a_single_worker_also_gets_over_a_deadly_picture() -> None:
    staff = Staff(deadly=["00.jpg"])
    records, _ = run(staff, "a")
    assert [key for key, record in records.items() if record.error] == ["00.jpg"]
    assert sorted(records) == sorted(NAMES)


def test_a_worker_that_always_dies_is_given_up_and_the_others_go_on() -> None:
    staff = Staff(error={"b": "killed by SIGABRT"})
    records, events = run(staff)
    assert sorted(records) == sorted(NAMES)
    gone = [event for event in events if isinstance(event, WorkerGone)]
    assert gone in (
        [],  # the other one was quicker
        [WorkerGone("b", "the worker b died 2 times in succession: killed by SIGABRT")],
        [WorkerGone("b", "the worker b died 4 times in succession: killed by SIGABRT")],
    )
    assert staff.hired.count("b") <= 4


def test_if_every_picture_kills_the_run_ends_with_an_error_not_with_failed_rows() -> None:
    staff = Staff(deadly=NAMES)
    with pytest.raises(IdeficsError, match="died 4 times in succession: killed by SIGKILL"):
        run(staff)
    assert len(staff.hired) <= 2 * 4


def test_a_worker_that_cannot_load_says_so_once_and_the_others_go_on() -> None:
    staff = Staff(error={"b": ModelError("too little memory on b")})
    records, events = run(staff, "a", "b", "c")
    assert sorted(records) == sorted(NAMES)
    assert [event for event in events if isinstance(event, WorkerGone)] == [
        WorkerGone("b", "too little memory on b")
    ]
    assert staff.hired.count("b") == 1


def test_if_no_worker_can_load_the_first_error_is_the_error_of_the_run() -> None:
    broken = {name: ModelError(f"no model for {name}") for name in ("a", "b")}
    seen: list[ExecutorEvent] = []
    with pytest.raises(ModelError, match=r"^no model for a$"):
        run(Staff(error={**broken}), on_event=seen.append)
    assert seen == []


def test_a_stop_lets_each_worker_finish_its_batch_and_hires_nobody() -> None:
    staff, stop = Staff(is_slow=True, waits=True), threading.Event()

    def on_add() -> None:
        if len(staff.workers) == 2 and all(worker.held for worker in staff.workers):
            stop.set()

    staff.on_add = on_add
    records, _ = run(staff, stop=stop)
    assert len(records) == 2 * BATCH, "one batch of each"
    assert staff.hired == ["a", "b"]


def test_a_worker_that_still_loads_is_killed_by_a_stop() -> None:
    stop = threading.Event()
    killed: list[str] = []

    class Loads:
        def __init__(self, inbox: Inbox) -> None:
            inbox.put((self, WorkerLoading("reading", 0.5)))

        def add(self, pictures: Sequence[CaptionItem]) -> None:
            raise AssertionError

        def stop(self) -> None:
            raise AssertionError

        def kill(self) -> None:
            killed.append("loading")

    phases: list[tuple[str, float | None]] = []

    def progress(phase: str, share: float | None) -> None:
        phases.append((phase, share))
        stop.set()

    executor = RemoteExecutor([Hire("a", Loads)], batch_size=BATCH, total=25)
    events = [*executor.caption(photo_job().pictures, stop, progress=progress)]
    assert [event for event in events if isinstance(event, CaptionRecord)] == []
    assert phases == [("reading", 0.5)]
    assert killed == ["loading"]


def test_late_records_of_a_worker_that_was_replaced_are_ignored() -> None:
    staff = Staff(is_slow=True)

    def start(inbox: Inbox) -> FakeWorker:
        gone = FakeWorker(staff, "gone", inbox)
        staff.on_add = lambda: inbox.put((gone, CaptionRecord(NAMES[0], caption="late")))
        return staff.start("a", inbox)

    executor = RemoteExecutor([Hire("a", start)], batch_size=BATCH, total=25)
    events = [*executor.caption(photo_job().pictures, threading.Event())]
    records = [event for event in events if isinstance(event, CaptionRecord)]
    assert sorted(record.file_name for record in records) == sorted(NAMES)
    assert "late" not in {record.caption for record in records}


def test_a_worker_with_another_commit_of_the_model_is_refused() -> None:
    staff = Staff(commits={"b": "4567def"})
    records, events = run(staff, "a", "b", "c")
    assert sorted(records) == sorted(NAMES)
    assert [event for event in events if isinstance(event, WorkerGone)] == [
        WorkerGone("b", "`b` has the commit 4567def of the model, and the first worker 0123abc")
    ]
    assert events.count(Ready("0123abc")) == 1
