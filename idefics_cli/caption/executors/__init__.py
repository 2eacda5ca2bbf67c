"""The executors: each makes captions in its own way, for example in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from idefics_cli.caption.executors.base import Executor, NamedFactory
from idefics_cli.caption.executors.local import LocalExecutor
from idefics_cli.caption.executors.processes import process_executor
from idefics_cli.caption.executors.reading import MakeReader, PictureReader
from idefics_cli.caption.job import CaptionJob
from idefics_cli.engine.protocol import EngineFactory

__all__ = [
    "EXECUTORS",
    "Executor",
    "ExecutorKind",
    "LocalExecutor",
    "MakeExecutor",
    "NamedFactory",
]

MakeExecutor = Callable[[EngineFactory, CaptionJob], Executor]
"""Makes the executor of a job, with engines from a factory."""


class ExecutorKind(Protocol):
    """Makes the executor of a job, which may read its items in another way than pictures."""

    def __call__(
        self,
        factory: EngineFactory,
        job: CaptionJob,
        *,
        make_reader: MakeReader = PictureReader,
        workers: Sequence[NamedFactory] = (),
    ) -> Executor:
        """Return the executor of *job*.

        Args:
            factory: Makes the engine, if there is only one.
            job: The job.
            make_reader: Makes the reader of its items.
            workers: Make the engines, if there are several.
        """
        ...


EXECUTORS: Mapping[str, ExecutorKind] = MappingProxyType(
    {"local": LocalExecutor, "processes": process_executor}
)
"""All executors: the name of each, and what makes it."""
