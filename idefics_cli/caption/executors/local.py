"""Captions made in this process, by one model."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from threading import Event

from idefics_cli.caption.asking import Asker
from idefics_cli.caption.discover import Picture
from idefics_cli.caption.executors.base import BatchReduced, ExecutorEvent, Ready
from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.readahead import ReadAhead
from idefics_cli.caption.reading import Opened, open_picture
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine import Engine, EngineFactory
from idefics_cli.engine.batching import alike

# Batches that are open ahead of the model: enough to find pictures of one shape among them.
_BATCHES_AHEAD = 4


class LocalExecutor:
    """Runs a job with one engine; see `Executor`.

    Args:
        factory: Makes the engine; it is closed when the captions are done.
        job: What is asked, in batches of what size, and how many threads read ahead.
    """

    def __init__(self, factory: EngineFactory, job: CaptionJob) -> None:
        self._factory = factory
        self._job = job

    def caption(
        self, pictures: Iterable[Picture], stop: Event
    ) -> Generator[ExecutorEvent, None, None]:
        """Yield a record for each of *pictures*; see `Executor.caption`."""
        cancel = Event()
        with self._factory() as engine, self._read_ahead(engine, pictures) as ahead:
            try:
                yield Ready(engine.revision)
                yield from self._caption(engine, ahead, cancel, stop)
            finally:
                cancel.set()

    def _read_ahead(self, engine: Engine, pictures: Iterable[Picture]) -> ReadAhead:
        def open_(picture: Picture) -> Opened | CaptionRecord:
            return open_picture(picture, self._job, engine)

        size = self._job.batch_size
        return ReadAhead(
            pictures,
            open_,
            threads=self._job.readers,
            in_flight=size,
            size=size * _BATCHES_AHEAD,
        )

    def _caption(
        self, engine: Engine, ahead: ReadAhead, cancel: Event, stop: Event
    ) -> Iterator[ExecutorEvent]:
        asker = Asker(engine, self._job, cancel)
        while not stop.is_set():
            waiting, failures = ahead.fill(stop)
            yield from failures
            if not waiting or stop.is_set():
                return
            size = asker.pictures_at_a_time
            batch = [waiting[i] for i in alike([opened.first for opened in waiting], size)]
            ahead.drop(batch)
            yield from asker.ask(batch)
            if asker.pictures_at_a_time < size:
                yield BatchReduced(asker.pictures_at_a_time)
