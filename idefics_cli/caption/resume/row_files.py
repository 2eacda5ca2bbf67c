"""The file of rows of a run, compared with what its journal says."""

from __future__ import annotations

import shutil
from pathlib import Path


def reaches(path: Path, size: int) -> bool:
    """Whether *path* exists and has at least *size* bytes."""
    try:
        return path.stat().st_size >= size
    except FileNotFoundError:
        return False


def has_line(path: Path, offset: int) -> bool:
    """Whether a line ends after *offset*."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return any(b"\n" in block for block in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return False


def copy_head(path: Path, copy: Path, size: int) -> None:
    """Make the file *copy* with the first *size* bytes of *path*, which need not exist for 0."""
    with copy.open("xb") as target:
        if not size:
            return
        with path.open("rb") as source:
            shutil.copyfileobj(source, target)
        target.truncate(size)
