"""Outputs of captioning: streams and records for sinks, and files on disk for comparison."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from idefics_cli.caption.resume.run_files import RunFiles
from idefics_cli.caption.sinks import SINKS
from idefics_cli.caption.sinks.base import Sink, Target
from idefics_cli.core.types import CaptionRecord

# How long a caption took, and when a sidecar changed.
_TIMES = re.compile(r'("seconds": |(?<=,))\d+\.\d+|\d{4}-\d\d-\d\dT[\d:+]+')
_HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
_NEEDS = {"parquet": pytest.mark.skipif(not _HAS_PYARROW, reason="pyarrow is not installed")}
OF_FILES = SINKS.keys() - {"webdataset"}
"""The names of the formats that take pictures in files, and not in archives."""
FORMATS = [pytest.param(n, marks=_NEEDS.get(n, ())) for n in SINKS if n in OF_FILES]
"""Every format that takes pictures in files, as the values of a parameter."""

# A file name that is not UTF-8.
NON_UTF8_NAME = os.fsdecode(b"caf\xe9 \xff\xfe.jpg")
# The formats that can be written to a stream.
OF_ONE_FILE = ("tsv", "jsonl", "csv", "csvbom")
every_sink = pytest.mark.parametrize("name", OF_ONE_FILE)


class Recorder:
    """A stream in memory that counts its flushes."""

    def __init__(self) -> None:
        self.data = b""
        self.flushed = b""

    def write(self, data: bytes) -> int:
        """Keep *data*."""
        self.data += data
        return len(data)

    def flush(self) -> None:
        """Note that all data is flushed."""
        self.flushed = self.data


def record(key: str, caption: str = "a cat") -> CaptionRecord:
    """Return the record of a picture with a caption."""
    return CaptionRecord(
        key, caption=caption, finish="stop", width=640, height=480, new_tokens=3, seconds=0.12345
    )


def written_bytes(name: str, records: Iterable[CaptionRecord]) -> bytes:
    """Return the bytes that a sink writes to a stream."""
    stream = Recorder()
    with SINKS[name](Target(stream)) as sink:
        for each in records:
            sink.write(each)
    return stream.data


def write_records(name: str, target: Target, records: Iterable[CaptionRecord]) -> list[int | None]:
    """Write *records*; return the position before them and after each of them."""
    with SINKS[name](target) as sink:
        positions = [sink.position()]
        for each in records:
            sink.write(each)
            positions.append(sink.position())
    return positions


def enter(sink: Sink) -> None:
    """Enter and leave *sink*."""
    with sink:
        pass


def destination(folder: str, format_: str) -> str:
    """Return the argument of `-o` for outputs in *folder*."""
    return folder if SINKS[format_].output == "folder" else f"{folder}/out"


def journal_in(folder: str, format_: str) -> Path:
    """Return the path of the journal of an output at `destination`."""
    target = Target(Recorder(), Path(destination(folder, format_)))
    run_path = SINKS[format_](target).run_path
    assert run_path is not None
    return RunFiles.beside(run_path).journal


def contents(folder: Path) -> dict[str, str]:
    """Return the outputs in *folder* by name, without the seconds that they took and their dates.

    The journal and the header of a run are not outputs.
    """
    return {
        str(path.relative_to(folder)): re.sub(_TIMES, "?", _text(path))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith((".journal", ".run.json"))
    }


def _text(path: Path) -> str:
    if not path.read_bytes().startswith(b"PAR1"):
        return path.read_text("utf-8")
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return "".join(json.dumps(row) + "\n" for row in file.read().to_pylist())


def spoil(path: Path, kind: str) -> None:
    """Put something at *path* that a reader of small text files must not read.

    Args:
        path: A free name.
        kind: A "device" without an end, a "pipe" that nobody writes to, or a "large" or "sparse"
            file.
    """
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(b"a " * (2**19 + 1))
    else:
        path.touch()
        os.truncate(path, 400 * 10**9)
