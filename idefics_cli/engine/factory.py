"""Picklable factories of engines. A factory loads nothing until it is called."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from idefics_cli.core.errors import IdeficsError, MemoryLimitError
from idefics_cli.core.imports import import_transformers, quick_imports
from idefics_cli.core.malloc import keep_freed_memory
from idefics_cli.core.types import LoadSpec, Progress
from idefics_cli.engine.protocol import Engine, EngineFactory
from idefics_cli.models.families.classes import import_bases
from idefics_cli.models.families.compiler_imports import without_compiler

if TYPE_CHECKING:
    from idefics_cli.engine.local.engine import LocalEngine

# Parts of messages of the dynamic linker about too little memory. The first is from glibc's
# dl-load.c. The second is from the text of ENOMEM, without its first letter: both "Cannot" and
# "cannot" occur.
_NO_MEMORY = ("failed to map segment", "annot allocate memory")


def engine_factory(spec: LoadSpec) -> EngineFactory:
    """Return a factory of engines for *spec*: a picklable value that has loaded nothing yet.

    Raises (when called):
        ModelError: If the model is missing or its files are broken.
        MemoryLimitError: If the model does not fit.
        IdeficsError: If the libraries cannot be imported.
    """
    return partial(_local_engine if spec.server is None else _remote_engine, spec)


def import_engine() -> None:
    """Import what local engines of all families need, so that a factory returns sooner.

    If that fails, the factory tells why.
    """
    with suppress(ImportError, OSError, MemoryError):
        _import_local_engine()
        import_bases()


def _remote_engine(spec: LoadSpec, *, progress: Progress | None = None) -> Engine:
    with quick_imports():
        from idefics_cli.engine.remote.engine import RemoteEngine
    return RemoteEngine(spec, progress=progress)


def _local_engine(spec: LoadSpec, *, progress: Progress | None = None) -> Engine:
    try:
        local_engine = _import_local_engine()
    except (ImportError, OSError, MemoryError) as error:
        raise _import_error(error) from error
    return local_engine(spec, progress=progress)


def _import_local_engine() -> type[LocalEngine]:
    # Threads that exist already keep heaps of their own.
    keep_freed_memory()
    with quick_imports(), without_compiler():
        import_transformers()
        from idefics_cli.engine.local.engine import LocalEngine
    return LocalEngine


def _import_error(error: ImportError | OSError | MemoryError) -> IdeficsError:
    """Return the error for libraries that cannot be imported."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return MemoryLimitError(
            "the libraries that run models do not fit the free memory",
            hint="close other programs, or raise the limit of memory",
        )
    return IdeficsError(
        f"the libraries that run models cannot be imported: {text[:300]}",
        hint="`idefics doctor` lists the packages; install them again with pip",
    )
