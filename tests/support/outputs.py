"""What captioning runs leave on disk, for comparison."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from idefics_cli.caption.sinks import SINKS

_HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
_NEEDS = {"parquet": pytest.mark.skipif(not _HAS_PYARROW, reason="pyarrow is not installed")}
FORMATS = [pytest.param(name, marks=_NEEDS.get(name, ())) for name in SINKS]
"""Every format, as the values of a parameter."""


def destination(folder: str, format_: str) -> str:
    """Return what `-o` is for the outputs of *folder*."""
    return folder if format_ == "txt" else f"{folder}/out"


def contents(folder: Path) -> dict[str, str]:
    """Return the outputs in *folder* by name, without the seconds that they took.

    The files by which a run goes on are no outputs.
    """
    return {
        str(path.relative_to(folder)): re.sub(r'("seconds": |(?<=,))\d+\.\d+', "?", _text(path))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith((".journal", ".run.json"))
    }


def _text(path: Path) -> str:
    if not path.read_bytes().startswith(b"PAR1"):
        return path.read_text("utf-8")
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return "".join(json.dumps(row) + "\n" for row in file.read().to_pylist())
