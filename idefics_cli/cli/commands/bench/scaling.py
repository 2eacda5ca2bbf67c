"""Captioning runs with stand-ins for models, as the scenario `scale` needs them."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self, cast

from idefics_cli.bench.stand_ins import WorkerFigures
from idefics_cli.caption.events import ExecutorEvent, Ready, RunEnded, RunEvent
from idefics_cli.caption.executors.base import NamedFactory
from idefics_cli.caption.executors.reading import MakeReader, PictureReader
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, CaptionQuestion
from idefics_cli.caption.kind import PICTURES
from idefics_cli.caption.output import CaptionOutput
from idefics_cli.caption.run import caption_pictures
from idefics_cli.core.types import Attachment, CaptionRecord, LoadSpec, Progress
from idefics_cli.engine.protocol import Engine, EngineFactory

_SPEC = LoadSpec(repo="stand-in", family="stand-in")
_PAUSE_SECONDS = 0.002


class StandInEngine:
    """An engine that answers nothing: the stand-in reader makes the records."""

    revision = None
    spec = _SPEC
    slots = room = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Do nothing."""

    @contextlib.contextmanager
    def serve(self, *, slots: int, cancel: Event) -> Iterator[Self]:
        """Yield this object as a session without outcomes."""
        yield self

    def get_outcome(self, timeout_seconds: float | None) -> None:
        """Wait, and return nothing."""
        time.sleep(timeout_seconds or 0)


def make_stand_in(*, progress: Progress | None = None) -> Engine:
    """Return a stand-in."""
    return cast(Engine, StandInEngine())


class StandInReader:
    """Gives each picture a record after the *seconds* of an answer.

    The record has the id of this process for its number of prompt tokens, and the time of the clock
    `time.monotonic`, which all processes share, for its seconds.
    """

    def __init__(self, job: CaptionJob, engine: Engine, *, seconds: float) -> None:
        self._seconds = seconds

    def read(self, picture: CaptionItem) -> CaptionRecord:
        """Return the record."""
        time.sleep(self._seconds)
        return _record(picture.key, os.getpid(), time.monotonic())


def _record(key: str, worker: int, seconds: float) -> CaptionRecord:
    return CaptionRecord(
        key,
        caption="A small purple star and a large green circle on a pink background.",
        finish="stop",
        prompt_tokens=worker,
        width=640,
        height=480,
        new_tokens=18,
        seconds=seconds,
        sha256=f"{hash(key) & 0xFFFFFFFF:064x}",
        stamp="46829-1795964844148512909",
    )


def _job(count: int) -> CaptionJob:
    names = (f"photos/{number // 1000:04}/{number:08}.jpg" for number in range(count))
    return CaptionJob(
        tuple(CaptionItem(name, Attachment(name), name[7:]) for name in names),
        (CaptionQuestion("Describe this image."),),
        batch_size=4,
        readers=1,
    )


def run_workers(count: int, pictures: int, seconds: float, folder: Path) -> WorkerFigures:
    """Run *count* workers; see `stand_ins.RunWorkers`."""
    began: tuple[float, float, float, int] | None = None
    seen: set[int] = set()
    done = 0
    answered = 0.0
    ended = (0.0, 0.0, 0.0)

    def on_event(event: RunEvent) -> None:
        nonlocal began, done, answered, ended
        if not isinstance(event, CaptionRecord):
            return
        # Records come many at a time. The figures begin and end with the last one of such a group.
        # The rate is that of the answers, because the run can wait before it takes their records.
        is_next_group = time.monotonic() - ended[2] > _PAUSE_SECONDS
        if began is None and len(seen) == count and done >= 8 * count:
            began = (*ended, done) if is_next_group or done >= 16 * count else None
        done += 1
        seen.add(event.prompt_tokens)
        answered = max(answered, event.seconds)
        ended = (answered, time.process_time(), time.monotonic())

    with tempfile.TemporaryDirectory(dir=folder) as inner:
        caption_pictures(
            _job(count * pictures),
            CaptionOutput("jsonl", Path(inner, "out.jsonl")),
            _SPEC,
            kind=replace(PICTURES, make_reader=partial(StandInReader, seconds=seconds)),
            factory=make_stand_in,
            executor="processes",
            workers=[(str(number), make_stand_in) for number in range(count)],
            on_event=on_event,
        )
    if began is None or done <= began[3]:
        return WorkerFigures(float("nan"), float("nan"))
    wall, busy = ended[0] - began[0], ended[1] - began[1]
    return WorkerFigures((done - began[3]) / wall, busy / (done - began[3]))


class _AtOnce:
    """An executor that gives each picture its record at once."""

    def __init__(
        self,
        factory: EngineFactory,
        job: CaptionJob,
        *,
        make_reader: MakeReader = PictureReader,
        workers: Sequence[NamedFactory] = (),
    ) -> None:
        """Ignore all."""

    def caption(
        self,
        pictures: Iterable[CaptionItem | None],
        stop: Event,
        *,
        progress: Progress | None = None,
    ) -> Generator[ExecutorEvent, None, None]:
        """Yield the records; see `Executor.caption`."""
        yield Ready()
        for picture in pictures:
            if picture is not None:
                yield _record(picture.key, 0, 0.02)


def measure_bytes(count: int, folder: Path) -> float:
    """Return the memory of the run for each of *count* pictures; see `stand_ins.MeasureBytes`."""
    import psutil

    process, used = psutil.Process(), 0

    def on_event(event: RunEvent) -> None:
        nonlocal used
        if isinstance(event, RunEnded):
            used = int(process.memory_info().rss)

    gc.collect()
    before = int(process.memory_info().rss)
    # The pictures are in another folder than the output, so that the journal names them in another
    # way. If they are below it, the run needs less.
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        job = _job(count)
        output = CaptionOutput("jsonl", Path(inner, "out.jsonl"))
        caption_pictures(
            job, output, _SPEC, factory=make_stand_in, executor=_AtOnce, on_event=on_event
        )
    return (used - before) / count
