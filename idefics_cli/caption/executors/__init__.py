"""The executors: each makes captions in its own way, for example in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from idefics_cli.caption.executors.base import Executor
from idefics_cli.caption.executors.local import LocalExecutor
from idefics_cli.caption.job import CaptionJob
from idefics_cli.engine.protocol import EngineFactory

__all__ = ["EXECUTORS", "Executor", "LocalExecutor", "MakeExecutor"]

MakeExecutor = Callable[[EngineFactory, CaptionJob], Executor]
"""Makes the executor of a job, with engines from a factory."""

EXECUTORS: Mapping[str, MakeExecutor] = MappingProxyType({"local": LocalExecutor})
"""All executors: the name of each, and what makes it."""
