"""Picklable factories of engines; nothing loads before one is called."""

from __future__ import annotations

from functools import partial

from idefics_cli.core.imports import import_transformers, quick_imports
from idefics_cli.core.types import LoadSpec, Progress
from idefics_cli.engine.protocol import Engine, EngineFactory


def engine_factory(spec: LoadSpec) -> EngineFactory:
    """Return a factory of engines for *spec*: a picklable value that has loaded nothing yet.

    Raises (when called):
        ModelError: If the model is missing or its files are broken.
        MemoryLimitError: If the model does not fit.
    """
    return partial(_local_engine, spec)


def _local_engine(spec: LoadSpec, *, progress: Progress | None = None) -> Engine:
    with quick_imports():
        import_transformers()
        from idefics_cli.engine.local.engine import LocalEngine

    return LocalEngine(spec, progress=progress)
