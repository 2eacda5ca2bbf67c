"""Where captions are made: one module per place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from idefics_cli.caption.executors.base import Executor
from idefics_cli.caption.executors.local import LocalExecutor
from idefics_cli.caption.job import CaptionJob
from idefics_cli.engine.protocol import EngineFactory

MakeExecutor = Callable[[EngineFactory, CaptionJob], Executor]

EXECUTORS: Mapping[str, MakeExecutor] = MappingProxyType({"local": LocalExecutor})
"""Name -> what runs a job with engines from a factory."""
