"""The executors, which make captions in this process or elsewhere: one module each."""

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
"""Name of an executor -> what makes it."""
