"""Image folders of Hugging Face: pictures, with `metadata.jsonl`, `.csv` or `.parquet` among them.

A folder below may have such a file of its own, about the pictures below it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from idefics_cli.core.errors import UsageError
from idefics_cli.images.folders import Walk, sort_key
from idefics_cli.training.data.folders import unread_parts, walk_data
from idefics_cli.training.data.options import ReadOptions
from idefics_cli.training.data.row import RowResult
from idefics_cli.training.data.table import read_table

_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def read_image_folder(folder: Path, options: ReadOptions) -> Iterator[RowResult]:
    """Yield the rows of all metadata files in *folder* and below it.

    Raises:
        UsageError: If a folder has two of them.
    """
    walk = walk_data(folder)
    yield from unread_parts(walk)
    known: dict[str, str] = {}
    for path in _metadata(walk):
        other = known.setdefault(os.path.dirname(path), path)
        if other != path:
            raise UsageError(
                f"both `{other}` and `{path}` describe pictures", hint="remove one of them"
            )
    for path in known.values():
        yield from read_table(Path(path), options)


def has_metadata(folder: Path) -> bool:
    """Whether *folder*, or one below it, has a metadata file."""
    return bool(_metadata(walk_data(folder)))


def _metadata(walk: Walk) -> list[str]:
    return sorted((f for f in walk.files if os.path.basename(f) in _NAMES), key=sort_key)
