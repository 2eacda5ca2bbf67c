"""The run: pictures to an executor, its records to a sink in the order of the pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from idefics_cli.caption.executors import EXECUTORS
from idefics_cli.caption.executors.base import BatchReduced, ExecutorEvent, Item, Ready
from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.sinks.base import Sink
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine import EngineFactory


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins with *total* pictures to caption."""

    total: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many pictures of a run were captioned, and how many failed."""

    captioned: int
    failed: int


RunEvent = Started | Ready | BatchReduced | CaptionRecord


def run_captions(
    job: CaptionJob,
    factory: EngineFactory,
    sink: Sink,
    *,
    on_event: Callable[[RunEvent], None] = lambda event: None,
    executor: str = "local",
) -> Outcome:
    """Caption the pictures of *job* that *sink* has not got yet.

    Records are written in the order of the pictures, each as soon as all before it are. When
    the run is interrupted, what is finished is written even past a gap, and the engine closed.

    Args:
        job: What to do.
        factory: Makes the engine, here or in a worker.
        sink: Already entered; the caller leaves it.
        on_event: Told of every event, of a record when it is written; called in this thread.
        executor: A key of `EXECUTORS`.

    Raises:
        IdeficsError: If the model cannot be loaded or the output not written. A picture that
            fails raises nothing.
    """
    completed = sink.completed()
    todo = tuple(picture for picture in job.pictures if picture.key not in completed)
    job = replace(job, pictures=todo)
    on_event(Started(len(todo)))
    if not todo:
        return Outcome(0, 0)
    asked: deque[str] = deque()
    failed = 0
    with closing(EXECUTORS[executor](factory, job).caption(_noted(job.items(), asked))) as events:
        for event in _in_order(events, asked):
            if isinstance(event, CaptionRecord):
                sink.write(event)
                failed += event.error is not None
            on_event(event)
    return Outcome(len(todo) - failed, failed)


def _noted(items: Iterable[Item], asked: deque[str]) -> Iterator[Item]:
    for item in items:
        asked.append(item[0])
        yield item


def _in_order(events: Iterable[ExecutorEvent], asked: deque[str]) -> Iterator[ExecutorEvent]:
    """Yield *events*, with the records in the order of the keys in *asked*, which it empties."""
    held: dict[str, CaptionRecord] = {}
    try:
        for event in events:
            if not isinstance(event, CaptionRecord):
                yield event
                continue
            held[event.file_name] = event
            while asked and asked[0] in held:
                yield held.pop(asked.popleft())
    except (Exception, KeyboardInterrupt):
        yield from (held[key] for key in asked if key in held)
        raise
    if asked:
        raise RuntimeError(f"the executor gave no record for `{asked[0]}`")
