"""The executor that makes captions in this process, with one engine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from threading import Event

from idefics_cli.caption.events import BatchReduced, ExecutorEvent, Ready
from idefics_cli.caption.executors.asking import Asker
from idefics_cli.caption.executors.base import NamedFactory
from idefics_cli.caption.executors.read_ahead import ReadAhead
from idefics_cli.caption.executors.reading import MakeReader, Opened, PictureReader
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob
from idefics_cli.core.types import Progress
from idefics_cli.engine.batching import choose_group
from idefics_cli.engine.protocol import Engine, EngineFactory

# Pictures for this many batches are opened before the model needs them. The more pictures are open,
# the more of them have the same shape and can share a batch.
_BATCHES_AHEAD = 4
# Maximum number of pictures that are being opened or wait for a thread. All of them may be in
# memory at the same time.
_MOST_IN_FLIGHT = 16
# The executor waits this long for an answer before it looks for newly opened pictures.
_POLL_SECONDS = 0.01


class LocalExecutor:
    """Runs a job with one engine; see `Executor`.

    Args:
        factory: Makes the engine, which is closed when the captions are done.
        job: The job.
        make_reader: Makes the reader of its items.
        workers: Ignored: there is one engine.
    """

    def __init__(
        self,
        factory: EngineFactory,
        job: CaptionJob,
        *,
        make_reader: MakeReader = PictureReader,
        workers: Sequence[NamedFactory] = (),
    ) -> None:
        self._factory = factory
        self._job = job
        self._make_reader = make_reader

    def caption(
        self,
        pictures: Iterable[CaptionItem | None],
        stop: Event,
        *,
        progress: Progress | None = None,
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
                    asker = Asker(session, self._job)
                    yield from _caption(asker, ahead, stop, self._job.patience_seconds)
            finally:
                cancel.set()

    def _read_ahead(self, engine: Engine, pictures: Iterable[CaptionItem | None]) -> ReadAhead:
        size = self._job.batch_size
        return ReadAhead(
            pictures,
            self._make_reader(self._job, engine).read,
            threads=self._job.readers,
            in_flight=min(size, _MOST_IN_FLIGHT),
            size=size * _BATCHES_AHEAD,
        )


def _caption(
    asker: Asker, ahead: ReadAhead, stop: Event, patience_seconds: float
) -> Iterator[ExecutorEvent]:
    groups = _Groups(ahead, patience_seconds)
    requests = asker.requests_at_a_time
    events: deque[ExecutorEvent] = deque()
    while True:
        # New questions are asked before a record is yielded, so that the model works while the
        # caller writes the record.
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
        if asker.requests_at_a_time < requests:
            requests = asker.requests_at_a_time
            events.append(BatchReduced(asker.pictures_at_a_time, requests))


class _Groups:
    """Chooses the next opened pictures, in groups that the model can answer together.

    The engine groups its waiting requests by the same rule, but a session takes only as many
    requests as it has slots. These are too few to find pictures of one shape among them.

    Args:
        ahead: Holds the opened pictures.
        patience_seconds: How long to wait for more pictures before choosing among fewer.
    """

    def __init__(self, ahead: ReadAhead, patience_seconds: float) -> None:
        self._ahead = ahead
        self._patience_seconds = patience_seconds
        self._group: deque[Opened] = deque()
        self._since: float | None = None

    def supply(self, asker: Asker) -> None:
        """Give *asker* pictures as long as it has room for them."""
        while asker.has_room and (self._group or self._choose(asker.pictures_at_a_time)):
            opened = self._group.popleft()
            self._ahead.drop(opened)
            asker.add(opened)

    def _choose(self, count: int) -> bool:
        """Choose a group of up to *count* pictures; False if it is better to wait for more."""
        waiting = self._ahead.waiting
        if self._ahead.is_opening and len(waiting) < count * (_BATCHES_AHEAD - 1):
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
