"""The output formats of captions: each has a module here, and a row in `SINKS`.

Every command needs the names of the formats, so importing this package must be cheap. A row imports
its module only when a run makes the sink.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from idefics_cli.caption.sinks.base import Sink, SinkFormat, Target
from idefics_cli.core.errors import UsageError


def _tsv(target: Target) -> Sink:
    from idefics_cli.caption.sinks.tsv import TsvSink

    return TsvSink(target)


def _jsonl(target: Target) -> Sink:
    from idefics_cli.caption.sinks.jsonl import JsonlSink

    return JsonlSink(target)


def _csv(target: Target) -> Sink:
    from idefics_cli.caption.sinks.csv import CsvSink

    return CsvSink(target)


def _csv_bom(target: Target) -> Sink:
    from idefics_cli.caption.sinks.csv import BomCsvSink

    return BomCsvSink(target)


def _parquet(target: Target) -> Sink:
    from idefics_cli.caption.sinks.parquet import ParquetSink

    return ParquetSink(target)


def _txt(target: Target) -> Sink:
    from idefics_cli.caption.sinks.txt import TxtSink

    return TxtSink(target)


def _xmp(target: Target) -> Sink:
    from idefics_cli.caption.sinks.xmp import XmpSink

    return XmpSink(target)


def _embed(target: Target) -> Sink:
    from idefics_cli.caption.sinks.embed import EmbedSink

    return EmbedSink(target)


def _webdataset(target: Target) -> Sink:
    from idefics_cli.caption.sinks.webdataset import WebdatasetSink

    return WebdatasetSink(target)


EMBEDDING = SinkFormat(_embed, output="folder")
"""Captions in the pictures, which is no format of an output."""

SINKS: Mapping[str, SinkFormat] = MappingProxyType(
    {
        "tsv": SinkFormat(_tsv, extensions=(".tsv", ".txt")),
        "jsonl": SinkFormat(_jsonl, extensions=(".jsonl", ".ndjson")),
        "csv": SinkFormat(_csv, extensions=(".csv",)),
        "csvbom": SinkFormat(_csv_bom, variant_of="csv"),
        "parquet": SinkFormat(_parquet, extensions=(".parquet",), output="file"),
        "txt": SinkFormat(_txt, output="folder", full_names=False),
        "xmp": SinkFormat(_xmp, output="folder", full_names=True),
        "webdataset": SinkFormat(_webdataset, output="folder"),
    }
)
"""All formats by name. The first one is used for stdout."""

_TABLE = "`-f csvbom -o captions.csv` writes a file for Excel"
_EACH = "`-f txt --text-extension .caption` writes a file for each picture"
# No format writes files with these extensions. Each hint says what writes something similar.
_HINTS = {
    ".json": "`-o captions.jsonl` has one JSON object per line",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), _TABLE),
    ".tar": "`-f webdataset -o FOLDER` writes an archive for each archive",
    ".xmp": "`-f xmp` writes a sidecar for each picture",
    **dict.fromkeys((".html", ".htm"), "`--report gallery.html` writes a page"),
    **dict.fromkeys((".caption", ".cap"), _EACH),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp"), "`-o` names where captions go"),
}


def find_format(path: Path) -> str | None:
    """Return the format to which the extension of *path* belongs; None if it belongs to none."""
    extension = path.suffix.lower()
    return next((name for name, row in SINKS.items() if extension in row.extensions), None)


def is_misleading(path: Path, format_: str) -> bool:
    """Return whether the extension of *path* belongs to another format than *format_*."""
    return find_format(path) not in (None, format_, SINKS[format_].variant_of)


def format_for(path: Path | None) -> str:
    """Return the format of an output at *path* when the user names none.

    Stdout, devices and names without an extension have the first format.

    Raises:
        UsageError: If the extension belongs to no format.
    """
    if path is None or not path.suffix or (path.exists() and not path.is_file()):
        return next(iter(SINKS))
    if format_ := find_format(path):
        return format_
    known = [extension for row in SINKS.values() for extension in row.extensions]
    raise UsageError(
        f"no format for `{path}`: `-o` knows {', '.join(known[:-1])} and {known[-1]}",
        hint=_HINTS.get(path.suffix.lower(), "`--format` says what the file will hold"),
    )
