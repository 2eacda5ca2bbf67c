"""The executors: each makes captions in its own way, for example in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from idefics_cli.caption.executors.base import Executor
from idefics_cli.caption.executors.local import LocalExecutor
from idefics_cli.caption.executors.reading import MakeReader, PictureReader
from idefics_cli.caption.job import CaptionJob
from idefics_cli.engine.protocol import EngineFactory

__all__ = ["EXECUTORS", "Executor", "ExecutorKind", "LocalExecutor", "MakeExecutor"]

MakeExecutor = Callable[[EngineFactory, CaptionJob], Executor]
"""Makes the executor of a job, with engines from a factory."""


class ExecutorKind(Protocol):
    """Makes the executor of a job, which may read its items in another way than pictures."""

    def __call__(
        self, factory: EngineFactory, job: CaptionJob, *, make_reader: MakeReader = PictureReader
    ) -> Executor:
        """Return the executor of *job*, with engines from *factory*."""
        ...


EXECUTORS: Mapping[str, ExecutorKind] = MappingProxyType({"local": LocalExecutor})
"""All executors: the name of each, and what makes it."""
