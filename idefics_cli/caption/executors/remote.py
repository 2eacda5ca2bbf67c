"""The executor that shares pictures among workers, each with an engine of its own."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event

from idefics_cli.caption.events import (
    ExecutorEvent,
    Ready,
    WorkerGone,
    WorkerLost,
    WorkerShares,
)
from idefics_cli.caption.executors.supply import Supply
from idefics_cli.caption.executors.worker_protocol import (
    CaptionWorker,
    Hire,
    Inbox,
    Received,
    WorkerAnswer,
    WorkerEnded,
    WorkerEvent,
    WorkerLoading,
    WorkerNamed,
)
from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import CaptionRecord, Progress
from idefics_cli.core.units import counted

# Batches of pictures that a worker has: one that the model answers, and those that it reads ahead.
# If a batch is one picture, a worker has more batches, so that it works while records are gathered.
_BATCHES = 4
_LEAST_PICTURES = 8
# A worker has fewer until all workers are ready, so that the first one does not take all pictures.
_BATCHES_AT_FIRST = 2
# After this many deaths in succession without a record, the place of a worker stays empty.
_MOST_DEATHS = 4
_MOST_DEATHS_AT_START = 2
# Longest time until the run notices that it should stop.
_POLL_SECONDS = 0.1
# After a record, the run waits for others, because a process that wakes for each record needs twice
# as much processor time. It does not wait longer than until a worker has done this share of its
# pictures, because a worker without pictures would have to wait, too.
_GATHER_SECONDS = 0.1
_GATHER_SHARE = 0.5
_PAUSE_SECONDS = 0.01
_SHARES_SECONDS = 1.0


class RemoteExecutor:
    """Shares the pictures of a job among workers; see `Executor`.

    A worker that dies is replaced. The pictures that it had are captioned one by one, because one
    of them may be the reason. A picture that is alone with its worker when that one dies, too, gets
    a record with `error_kind="worker_died"`.

    Args:
        hires: The places of the workers.
        batch_size: Number of pictures that a worker answers at a time.
        total: Number of pictures. No worker has more than its share of those that are left, so
            that one does not work while the others have nothing to do.
    """

    def __init__(self, hires: Sequence[Hire], *, batch_size: int, total: int) -> None:
        self._hires = hires
        self._batch_size = batch_size
        self._total = total

    def caption(
        self,
        pictures: Iterable[CaptionItem | None],
        stop: Event,
        *,
        progress: Progress | None = None,
    ) -> Generator[ExecutorEvent, None, None]:
        """Yield a record for each of *pictures*; see `Executor.caption`."""
        crew = _Crew(self._hires, pictures, self._batch_size, self._total, progress)
        try:
            yield from crew.events(stop)
        finally:
            crew.kill()


@dataclass(slots=True, eq=False)
class _Place:
    """The place of a worker.

    Attributes:
        hire: Starts its workers.
        name: Name of the worker, or of the place as long as there was none.
        worker: The worker; None if there is none any more.
        open: Key -> picture that the worker has.
        is_ready: Whether its model is loaded.
        is_alone: Whether its only picture may have killed another worker.
        deaths: Number of workers that died here since the last record.
        done: Number of records.
    """

    hire: Hire
    name: str
    worker: CaptionWorker | None = None
    open: dict[str, CaptionItem] = field(default_factory=dict)
    is_ready: bool = False
    is_alone: bool = False
    deaths: int = 0
    done: int = 0


class _Crew:
    """The workers of one run, and their pictures."""

    def __init__(
        self,
        hires: Sequence[Hire],
        pictures: Iterable[CaptionItem | None],
        batch_size: int,
        total: int,
        progress: Progress | None,
    ) -> None:
        self._left = total
        self._inbox = Inbox()
        self._places = [_Place(hire, hire.name) for hire in hires]
        self._supply = Supply(pictures)
        self._returned: deque[CaptionItem] = deque()
        self._suspects: deque[CaptionItem] = deque()
        self._tester: _Place | None = None
        self._batch_size = batch_size
        self._progress = progress
        self._ready: Ready | None = None
        self._gone: list[WorkerGone] = []
        self._told: set[WorkerGone] = set()
        self._error: IdeficsError | None = None
        self._is_stopping = False
        self._next_shares = 0.0

    def events(self, stop: Event) -> Iterator[ExecutorEvent]:
        for place in self._places:
            place.worker = place.hire.start(self._inbox)
        while True:
            if stop.is_set() and not self._is_stopping:
                self._stop()
            if not self._is_stopping:
                self._give_pictures()
            if self._is_over():
                break
            # All records that have come are handled before pictures are given again. So the cost of
            # giving does not grow with the number of workers.
            for worker, event in self._received():
                yield from self._handle(worker, event)
            yield from self._tell_shares()
        yield self._shares

    def _received(self) -> list[Received]:
        """Return the events that have come; wait a moment for the first one, and for others."""
        events = self._inbox.take(_POLL_SECONDS)
        began = now = time.monotonic()
        while events and isinstance(events[-1][1], CaptionRecord):
            share = self._share_done(events)
            # At the present rate, a worker has done that share of its pictures after the pause.
            pause = max(_PAUSE_SECONDS, (now - began) * (_GATHER_SHARE - share) / max(share, 0.01))
            pause = min(pause, began + _GATHER_SECONDS - now)
            if share >= _GATHER_SHARE or pause <= 0:
                break
            time.sleep(pause)
            events += self._inbox.take(0)
            now = time.monotonic()
        return events

    def _share_done(self, events: Sequence[Received]) -> float:
        """Return the largest share of the pictures of a worker that have a record in *events*."""
        done = Counter(worker for worker, _ in events)
        return max(
            (done[p.worker] / len(p.open) for p in self._places if p.worker and p.open), default=1.0
        )

    @property
    def _shares(self) -> WorkerShares:
        done: dict[str, int] = {}
        for place in self._places:
            if place.done or place.is_ready:  # others have no name of their own yet
                done[place.name] = done.get(place.name, 0) + place.done
        return WorkerShares(tuple(done.items()))

    def _tell_shares(self) -> Iterator[ExecutorEvent]:
        now = time.monotonic()
        if self._ready and now >= self._next_shares:
            self._next_shares = now + _SHARES_SECONDS
            yield self._shares

    def kill(self) -> None:
        for place in self._places:
            if place.worker is not None:
                place.worker.kill()
        self._inbox.close()

    def _is_over(self) -> bool:
        if self._is_stopping:
            return all(place.worker is None for place in self._places)
        if any(place.open for place in self._places) or self._suspects or self._returned:
            return False
        return self._supply.is_exhausted

    def _stop(self) -> None:
        self._is_stopping = True
        for place in self._places:
            if place.worker is not None and place.is_ready:
                place.worker.stop()
            elif place.worker is not None:
                place.worker.kill()
                place.worker = None

    def _handle(self, worker: CaptionWorker, event: WorkerEvent) -> Iterator[ExecutorEvent]:
        place = next((each for each in self._places if each.worker is worker), None)
        if place is None:  # it was replaced, or killed
            return
        match event:
            case CaptionRecord():
                if place.open.pop(event.file_name, None) is not None:
                    place.deaths, place.is_alone = 0, False
                    place.done += 1
                    self._left -= 1
                    yield event
            case Ready():
                yield from self._begin(place, worker, event)
            case WorkerNamed(name):
                place.name = name
            case WorkerLoading(phase, share):
                first = next((each for each in self._places if not each.is_ready), None)
                if self._progress is not None and place is first and not self._ready:
                    self._progress(phase, share)
            case WorkerEnded():
                yield from self._end(place, event)
            case WorkerAnswer():  # nobody waits for it any more
                pass
            case _:
                yield event

    def _begin(self, place: _Place, worker: CaptionWorker, event: Ready) -> Iterator[ExecutorEvent]:
        """Note that the model of *worker* is loaded, and check that it is the model of the others.

        Nodes of a cluster have files of their own, perhaps of another commit.
        """
        first = self._ready or event
        if event.revision != first.revision:
            worker.kill()
            place.worker = None
            name = f"`{place.name}` has the commit {event.revision} of the model"
            error = IdeficsError(f"{name}, and the first worker {first.revision}")
            error.hint = "`--revision` names the commit for all"
            self._leave(place, error)
        else:
            place.is_ready = True
            if self._ready is None:
                self._ready = event
                yield event
        yield from self._tell_gone()

    def _end(self, place: _Place, ended: WorkerEnded) -> Iterator[ExecutorEvent]:
        was_ready, place.is_ready, place.worker = place.is_ready, False, None
        if self._is_stopping:
            return
        if not ended.blames_pictures:
            self._returned.extend(place.open.values())
        if ended.error is not None and not (was_ready and ended.blames_pictures):
            place.open.clear()
            self._leave(place, ended.error)
            yield from self._tell_gone()
            return
        reason = ended.reason or (str(ended.error) if ended.error else "it ended by itself")
        place.deaths += 1
        lost = [*place.open.values()]
        place.open.clear()
        yield WorkerLost(place.name, reason, len(lost))
        if not ended.blames_pictures:
            place.is_alone = False
        elif place.is_alone:
            place.is_alone = False
            self._left -= len(lost)
            yield from (_dead(picture, reason) for picture in lost)
        else:
            self._suspects.extend(lost)
            # While a picture is tested, its worker gets no other, which would be blamed, too.
            self._tester = self._tester or place
        most = _MOST_DEATHS if self._ready else _MOST_DEATHS_AT_START
        if place.deaths < most:
            place.worker = place.hire.start(self._inbox)
            return
        told = (
            f"the worker {place.name} died {counted(place.deaths, 'time')} in succession: {reason}"
        )
        self._leave(place, IdeficsError(told))
        yield from self._tell_gone()

    def _leave(self, place: _Place, error: IdeficsError) -> None:
        """Leave *place* empty; if it was the last one, raise the first error."""
        self._error = self._error or error
        if self._tester is place:
            self._tester = None
        if all(each.worker is None for each in self._places):
            raise self._error
        gone = WorkerGone(place.name, str(error))
        if gone not in self._told:  # all workers of a node have the same reason
            self._told.add(gone)
            self._gone.append(gone)

    def _tell_gone(self) -> Iterator[ExecutorEvent]:
        # If no worker can work, the error of the run says why, and says it once.
        if self._ready:
            yield from self._gone
            self._gone.clear()

    def _give_pictures(self) -> None:
        ready = [place for place in self._places if place.is_ready]
        self._test_suspect(ready)
        hired = [place for place in self._places if place.worker is not None]
        share = -(-self._left // max(1, len(hired)))
        is_waiting = len(ready) < len(hired)
        most = self._batch_size * _BATCHES_AT_FIRST
        if not is_waiting:
            most = max(_LEAST_PICTURES, self._batch_size * _BATCHES)
        most = min(most, max(1, share))
        # A worker gets pictures when it has room for a batch. A message for each picture would be
        # most of the work of this process.
        few = max(0, most - self._batch_size)
        free = [p for p in ready if p is not self._tester and len(p.open) <= few]
        given: dict[_Place, list[CaptionItem]] = {place: [] for place in free}
        while free:
            place = min(free, key=lambda each: len(each.open))
            picture = self._next_picture()
            if picture is None:
                break
            place.open[picture.key] = picture
            given[place].append(picture)
            if len(place.open) >= most:
                free.remove(place)
        for place, pictures in given.items():
            if pictures and place.worker is not None:
                place.worker.add(pictures)

    def _next_picture(self) -> CaptionItem | None:
        return self._returned.popleft() if self._returned else self._supply.next_picture()

    def _test_suspect(self, ready: Sequence[_Place]) -> None:
        """Give a picture that may have killed a worker to one that has no other picture."""
        if not self._suspects:
            if self._tester is not None and not self._tester.open:
                self._tester = None
            return
        if self._tester is None and ready:
            self._tester = min(ready, key=lambda each: len(each.open))
        tester = self._tester
        if tester is not None and tester in ready and not tester.open and tester.worker is not None:
            picture = self._suspects.popleft()
            tester.open[picture.key], tester.is_alone = picture, True
            tester.worker.add([picture])


def _dead(picture: CaptionItem, reason: str) -> CaptionRecord:
    return CaptionRecord(
        picture.key,
        error=f"two workers died with `{picture.key}`: {reason}",
        error_kind="worker_died",
        hint="`--retry-failed` tries it again",
    )
