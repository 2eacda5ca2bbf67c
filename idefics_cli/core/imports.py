"""Imports of large libraries without a garbage collector that looks for garbage in them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def import_transformers() -> None:
    """Import transformers and its list of models, and let it look through its files only once.

    By itself it reads its 2,000 files on models twice (5.17 to 5.23), a tenth of the time that
    all its imports take: `transformers` asks about their folder, `transformers.models` about a
    file in that folder, which its cache does not know to be the same.
    """
    from transformers.utils import import_utils

    look = import_utils.create_import_structure_from_path

    def look_at_folder(path: str | Path) -> object:
        return look(Path(path).parent if Path(path).is_file() else path)

    # Any file stands for its folder there.
    import_utils.create_import_structure_from_path = look_at_folder
    try:
        import transformers.models  # noqa: F401  # for what it leaves behind
    finally:
        import_utils.create_import_structure_from_path = look
