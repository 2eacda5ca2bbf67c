"""Imports of large libraries without a garbage collector that looks for garbage in them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Pause the garbage collector while the body imports, and spare it what was imported.

    torch and transformers make a million objects that stay until the end. Every 70,000 of them
    the collector goes through all that there are, which is a tenth of the time that the import
    takes, and does so again at the end of the program.
    """
    was_on = gc.isenabled()
    modules = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules:
            gc.freeze()
        if was_on:
            gc.enable()
