"""Captions made in this process, by one model."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from threading import Event

from idefics_cli.caption.executors.base import BatchReduced, ExecutorEvent, Item, Ready
from idefics_cli.caption.job import CaptionJob, with_content_seed
from idefics_cli.caption.readahead import Opened, ReadAhead
from idefics_cli.caption.records import captioned, failed
from idefics_cli.core.types import CaptionRecord, GenerationRequest
from idefics_cli.engine import Engine, EngineFactory, Prepared
from idefics_cli.engine.batching import Answer, Batcher, alike

# Batches that are open ahead of the model: enough to find pictures of one shape among them.
_BATCHES_AHEAD = 4


class LocalExecutor:
    """Runs a job with one engine; see `Executor`.

    Args:
        factory: Makes the engine; it is closed when the captions are done.
        job: For its batch size and readers.
    """

    def __init__(self, factory: EngineFactory, job: CaptionJob) -> None:
        self._factory = factory
        self._job = job

    def caption(self, items: Iterable[Item]) -> Generator[ExecutorEvent, None, None]:
        """Yield a record for each of *items*; see `Executor.caption`."""
        cancel = Event()
        with self._factory() as engine, self._read_ahead(engine, items) as ahead:
            try:
                yield Ready()
                yield from self._caption(engine, ahead, cancel)
            finally:
                cancel.set()

    def _read_ahead(self, engine: Engine, items: Iterable[Item]) -> ReadAhead:
        def open_(request: GenerationRequest) -> Prepared:
            return with_content_seed(engine.prepare(request))

        size = self._job.batch_size
        return ReadAhead(
            items,
            open_,
            threads=self._job.readers,
            in_flight=size,
            size=size * _BATCHES_AHEAD,
        )

    def _caption(self, engine: Engine, ahead: ReadAhead, cancel: Event) -> Iterator[ExecutorEvent]:
        batcher = Batcher(engine, self._job.batch_size)
        while True:
            waiting, failures = ahead.fill()
            yield from failures
            if not waiting:
                return
            size = batcher.size
            batch = [waiting[i] for i in alike([picture.prepared for picture in waiting], size)]
            ahead.drop(batch)
            answers = batcher.answer([picture.prepared for picture in batch], cancel=cancel)
            if batcher.size < size:
                yield BatchReduced(batcher.size)
            for picture, answer in zip(batch, answers, strict=True):
                yield _record(picture, answer)


def _record(picture: Opened, answer: Answer | Exception) -> CaptionRecord:
    if isinstance(answer, Exception):
        return failed(picture.key, answer)
    return captioned(picture.key, picture.prepared, answer.completion, seconds=answer.seconds)
