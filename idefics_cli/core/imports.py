"""Faster imports of torch, transformers and bitsandbytes."""

from __future__ import annotations

import gc
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from types import FrameType
from typing import Any

_compile_lock = threading.Lock()
_Handler = Callable[[int, FrameType | None], object]


@contextmanager
def quick_imports() -> Iterator[None]:
    """Stop the garbage collector in the `with` block; then exclude the imported objects from it.

    The imports of torch and transformers create a million objects that live until the program
    ends. After every 70,000 new objects the collector scans all objects, which takes a tenth of
    the import time. It would scan them once more when the program ends.
    """
    was_on = gc.isenabled()
    modules = len(sys.modules)
    gc.disable()
    try:
        with _signals_held():
            yield
    finally:
        if len(sys.modules) > modules:
            gc.freeze()
        if was_on:
            gc.enable()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Handle a signal that comes in the body after it; the second one is handled at once.

    A KeyboardInterrupt in a Python call of the C++ code that initializes torch ends the process
    with SIGABRT ("terminate called after throwing an instance of pybind11::error_already_set").
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hold = _Hold()
    try:
        yield
    finally:
        hold.release()


class _Hold:
    """A handler that notes the first signal and passes on every further one."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self._former: dict[int, _Handler] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            # If `with` blocks are nested, the handler of the outer one is kept.
            if callable(handler) and not isinstance(handler, _Hold):
                self._former[number] = handler
                signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._held.append(number)
        if len(self._held) > 1:
            self._former[number](number, frame)

    def release(self) -> None:
        """Restore the former handlers, and pass the noted signal on."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        if len(self._held) == 1:
            self._former[self._held[0]](self._held[0], None)


def import_transformers() -> None:
    """Import transformers and its list of models, and scan its files only once.

    Meanwhile, torch seems to lack `torch.distributed`, as in builds without it. Otherwise
    transformers would import `torch.distributed.tensor`, with 200 modules, for models that several
    processes share.

    transformers 5.17 to 5.24 read their 2,000 model files twice, which takes a tenth of the
    import time: `transformers` passes the folder of the models to
    `create_import_structure_from_path`, `transformers.models` passes a file in that folder, and
    the cache of that function does not treat the two as equal.
    """
    from transformers.utils import import_utils

    _hide_distributed(getattr(import_utils, "is_torch_distributed_available", bool))
    scan = import_utils.create_import_structure_from_path

    def scan_folder(path: str | Path) -> object:
        # If *path* is a file, the original function scans the folder of the file.
        return scan(Path(path).parent if Path(path).is_file() else path)

    import_utils.create_import_structure_from_path = scan_folder
    try:
        import transformers.models  # noqa: F401  # for its side effect: the list of models
    finally:
        import_utils.create_import_structure_from_path = scan


def _hide_distributed(is_available: Callable[[], bool]) -> None:
    """Let *is_available* keep the answer that torch has no `torch.distributed`.

    It asks `torch.distributed.is_available`, and caches the answer. A version that does not cache
    it asks again, and imports more.
    """
    import torch.distributed

    asked = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        is_available()
    finally:
        torch.distributed.is_available = asked


def import_bitsandbytes() -> None:
    """Import bitsandbytes, whose functions are compiled at their first call.

    bitsandbytes 0.49 and 0.50 call `torch.compile` for four functions, none of which is needed on a
    processor. That call imports the compiler of torch, which has 1,100 modules and takes seconds.

    Raises:
        ImportError: If bitsandbytes is not installed.
    """
    import torch

    thread = threading.get_ident()
    with _compile_lock:
        compile_now = torch.compile

        # Any: the overloads of `torch.compile` are not repeated here.
        def compile_here(*given: Any, **options: Any) -> Any:
            if given and threading.get_ident() == thread:
                return _compile_later(compile_now, *given, **options)
            return compile_now(*given, **options)

        torch.compile = compile_here
        try:
            importlib.import_module("bitsandbytes")
        finally:
            torch.compile = compile_now


def _compile_later(compile_now: Any, function: Any, **options: Any) -> Callable[..., Any]:
    @cache
    def compiled() -> Any:
        return compile_now(function, **options)

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        return compiled()(*given, **named)

    return call
