"""Faster imports of torch and transformers."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def quick_imports() -> Iterator[None]:
    """Stop the garbage collector in the block, and exclude the imported objects from it afterwards.

    The imports of torch and transformers create a million objects that live until the program
    ends. After every 70,000 new objects the collector scans all objects, which takes a tenth of
    the import time. It would scan them once more when the program ends.
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
    """Import transformers and its list of models, and scan its files only once.

    transformers 5.17 to 5.24 read their 2,000 model files twice, which takes a tenth of the
    import time: `transformers` passes the folder of the models to
    `create_import_structure_from_path`, `transformers.models` passes a file in that folder, and
    the cache of that function does not treat the two as equal.
    """
    from transformers.utils import import_utils

    scan = import_utils.create_import_structure_from_path

    def scan_folder(path: str | Path) -> object:
        # If *path* is a file, the original function scans the folder of the file.
        return scan(Path(path).parent if Path(path).is_file() else path)

    import_utils.create_import_structure_from_path = scan_folder
    try:
        import transformers.models  # noqa: F401  # for its side effect: the list of models
    finally:
        import_utils.create_import_structure_from_path = scan
