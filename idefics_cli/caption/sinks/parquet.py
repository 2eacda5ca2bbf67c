"""The format Parquet. No row can be added to such a file, so a run collects JSON lines first."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import replace
from io import BufferedWriter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

from idefics_cli.caption.sinks.base import Target
from idefics_cli.caption.sinks.jsonl import JsonlSink, encode
from idefics_cli.caption.sinks.rows import DETAILS, Value, list_columns, names
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.escapes import NOT_UTF8, escape
from idefics_cli.core.files import cannot_write, limited_lines, replacing
from idefics_cli.engine.schema.form import ColumnKind

if TYPE_CHECKING:
    import pyarrow

_ROWS = ".rows.jsonl"
_GROUP_ROWS = 10_000
_KINDS: Mapping[ColumnKind, type] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "json": str,
}


class ParquetSink(JsonlSink):
    """Writes every record, failures too; a missing value is null. See `Sink`.

    Rows are written to JSON lines beside the file (see `rows_file`). `finish` makes the Parquet
    file from them. Until then, an older file stays.
    """

    has_types = True

    def __init__(self, target: Target) -> None:
        if target.path is None:
            raise UsageError("parquet needs a file", hint="`-o captions.parquet`")
        super().__init__(replace(target, path=rows_file(target.path)))
        self._path = target.path

    def check_place(self) -> None:
        """Check that the file can be written, and pyarrow is there; see `Sink.check_place`."""
        check_pyarrow()
        path = self._path
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UsageError(f"cannot write `{path}`: parquet needs a file, not a device")
        self._check_file(path)

    def __enter__(self) -> Self:
        """Check the file; if rows are to be added, copy its rows to JSON lines. See `Sink`."""
        target, path = self._target, self._path
        self.check_place()
        if target.resume_at is None:
            rows = rows_file(path)
            if target.existing in ("append", "skip") and path.exists() and not rows.exists():
                _read_rows(path, rows, _schema(target).names)
        return super().__enter__()

    @property
    def run_path(self) -> Path:
        """Path of the Parquet file; see `Sink.run_path`."""
        return self._path

    def finish(self) -> None:
        """Write the Parquet file from the rows; see `Sink.finish`."""
        # The JSON lines stay if they contain rows from before this run. The journal lacks these
        # rows, and a later call needs them to continue.
        keeps = self._target.existing in ("append", "skip")
        write_parquet(self._path, _schema(self._target), keep_rows=keeps)


def rows_file(path: Path) -> Path:
    """Return the path of the JSON lines with the rows of the Parquet file *path*."""
    return path.with_name(path.name + _ROWS)


def check_pyarrow() -> None:
    """Raise a UsageError with the command to install pyarrow, if it is missing."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            "parquet needs the library pyarrow", hint="pip install 'idefics-cli[parquet]'"
        )


def write_parquet(path: Path, schema: pyarrow.Schema, *, keep_rows: bool = False) -> None:
    """Write *path* from its JSON lines, and remove these lines; without JSON lines, do nothing.

    At most 10,000 rows are in memory at a time. A torn last line is ignored.

    Args:
        path: The Parquet file, which is replaced as a whole.
        schema: Names and types of the columns.
        keep_rows: Whether the JSON lines stay, so that a run can continue them.

    Raises:
        IdeficsError: If the file cannot be written; the JSON lines then stay.
    """
    rows = rows_file(path)
    if not rows.exists():
        return
    try:
        with replacing(path) as file:
            _convert(rows, file, schema)
        if not keep_rows:
            rows.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error
    # If a row is damaged, pyarrow raises one of these errors, or a subclass of one.
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise IdeficsError(
            f"cannot write `{path}`: its rows in `{rows}` are damaged ({reason})",
            hint=f"remove `{rows}`; the same command makes it again from the journal",
        ) from error


def _convert(rows: Path, file: BufferedWriter, schema: pyarrow.Schema) -> None:
    import pyarrow
    from pyarrow import parquet

    with rows.open("rb") as lines, parquet.ParquetWriter(file, schema) as writer:
        whole = (line for line in limited_lines(lines) if line.endswith(b"\n"))
        while group := [_cells(json.loads(line)) for line in islice(whole, _GROUP_ROWS)]:
            writer.write_batch(pyarrow.RecordBatch.from_pylist(group, schema=schema))


def _schema(target: Target) -> pyarrow.Schema:
    import pyarrow

    types = {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        bool: pyarrow.bool_(),
        list: pyarrow.list_(pyarrow.string()),
    }
    if target.samples == 1:
        found: dict[str, type] = dict.fromkeys(names(target.columns), str)
    else:
        lists = list_columns(target.columns, target.samples)
        found = {name: list if name in lists else str for name in names(lists)}
    found.update((field.name, _KINDS[field.kind]) for field in target.fields)
    found.update(DETAILS)
    return pyarrow.schema([(name, types[kind]) for name, kind in found.items()])


def _cells(cells: dict[str, Value]) -> dict[str, Value]:
    if not isinstance(cells.get("file_name"), str):
        raise ValueError("a row has no `file_name`")
    return {
        name: _text(value) if isinstance(value, str) else value for name, value in cells.items()
    }


def _text(value: str) -> str:
    # Strings in Parquet are UTF-8, which cannot encode surrogates. Version 0.1.0 wrote a surrogate
    # for each byte that is not UTF-8.
    return NOT_UTF8.sub(lambda match: escape(ord(match[0])), value)


def _read_rows(path: Path, rows: Path, columns: list[str]) -> None:
    """Write the rows of the Parquet file *path* to the JSON lines *rows*."""
    from pyarrow import ArrowException, parquet

    # `replacing` writes to a temporary file first. If this run were killed here, the next run would
    # otherwise read an incomplete file as if it were complete.
    try:
        # The path is absolute, because pyarrow reads a relative name with a colon as a URI.
        with parquet.ParquetFile(path.absolute()) as file, replacing(rows) as lines:
            if file.schema_arrow.names != columns:
                raise ValueError("it has other columns")
            for batch in file.iter_batches():
                lines.writelines(map(encode, batch.to_pylist()))
    except (ValueError, OSError, ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"cannot continue `{path}`: {reason}", hint="`--existing overwrite` replaces it"
        ) from error
