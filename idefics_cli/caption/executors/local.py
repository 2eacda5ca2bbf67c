"""Captions made in this process, by one model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from threading import Event

from idefics_cli.caption.events import BatchReduced, ExecutorEvent, Ready
from idefics_cli.caption.executors.asking import Asker
from idefics_cli.caption.executors.read_ahead import ReadAhead
from idefics_cli.caption.executors.reading import Opened, PictureReader
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob
from idefics_cli.core.types import Progress
from idefics_cli.engine.batching import choose_group
from idefics_cli.engine.protocol import Engine, EngineFactory

# As many pictures as are answered at a time, so many times, are open ahead of the model: enough
# to find some of one shape among them.
_GROUPS_AHEAD = 4
# How often to look for pictures that were opened meanwhile.
_POLL_SECONDS = 0.01


class LocalExecutor:
    """Runs a job with one engine; see `Executor`.

    Args:
        factory: Makes the engine; it is closed when the captions are done.
        job: What is asked, how many at a time, and how many threads read ahead.

    Attributes:
        patience_seconds: How long open pictures wait for others, before a group is chosen among
            fewer of them.
    """

    patience_seconds = 0.25

    def __init__(self, factory: EngineFactory, job: CaptionJob) -> None:
        self._factory = factory
        self._job = job

    def caption(
        self, pictures: Iterable[CaptionItem], stop: Event, *, progress: Progress | None = None
    ) -> Generator[ExecutorEvent, None, None]:
        """Yield a record for each of *pictures*; see `Executor.caption`."""
        cancel = Event()
        size = self._job.batch_size
        with (
            self._factory(progress=progress) as engine,
            self._read_ahead(engine, pictures) as ahead,
        ):
            try:
                yield Ready(engine.revision)
                with engine.serve(slots=size, cancel=cancel) as session:
                    groups = _Groups(ahead, self.patience_seconds)
                    yield from _caption(Asker(session, self._job), ahead, groups, stop)
            finally:
                cancel.set()

    def _read_ahead(self, engine: Engine, pictures: Iterable[CaptionItem]) -> ReadAhead:
        size = self._job.batch_size
        return ReadAhead(
            pictures,
            PictureReader(self._job, engine).read,
            threads=self._job.readers,
            in_flight=size,
            size=size * _GROUPS_AHEAD,
        )


def _caption(
    asker: Asker, ahead: ReadAhead, groups: _Groups, stop: Event
) -> Iterator[ExecutorEvent]:
    size = asker.pictures_at_a_time
    events: deque[ExecutorEvent] = deque()
    while True:
        # Before a record is written, so that the model does not wait for that.
        if not stop.is_set():
            events += ahead.collect()
            groups.supply(asker)
        asker.ask()
        if events:
            yield events.popleft()
            continue
        if asker.is_idle and (stop.is_set() or ahead.is_over):
            return
        is_waiting = asker.has_room and not ahead.is_over and not stop.is_set()
        events += asker.settle(_POLL_SECONDS if is_waiting else None)
        if asker.pictures_at_a_time < size:
            size = asker.pictures_at_a_time
            events.append(BatchReduced(size))


class _Groups:
    """Chooses which of the pictures that are open come next: some that go together.

    Args:
        ahead: Where they wait.
        patience_seconds: See `LocalExecutor`.
    """

    def __init__(self, ahead: ReadAhead, patience_seconds: float) -> None:
        self._ahead = ahead
        self._patience_seconds = patience_seconds
        self._group: deque[Opened] = deque()
        self._since: float | None = None

    def supply(self, asker: Asker) -> None:
        """Give *asker* pictures while it has room for them."""
        while asker.has_room and (self._group or self._choose(asker.pictures_at_a_time)):
            opened = self._group.popleft()
            self._ahead.drop(opened)
            asker.add(opened)

    def _choose(self, count: int) -> bool:
        """Choose up to *count* that go together; False if it is better to wait for others."""
        waiting = self._ahead.waiting
        if self._ahead.is_opening and len(waiting) < count * (_GROUPS_AHEAD - 1):
            now = time.monotonic()
            self._since = now if self._since is None else self._since
            if not waiting or now - self._since < self._patience_seconds:
                return False
        self._since = None
        if not waiting:
            return False
        chosen = choose_group([opened.first for opened in waiting], count)
        self._group += (waiting[index] for index in chosen)
        return True
