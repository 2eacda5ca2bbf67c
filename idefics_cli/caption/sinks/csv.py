"""The format CSV by RFC 4180, in UTF-8, with a header; unlike in the RFC, lines end with LF."""

from __future__ import annotations

import csv
import io
from collections.abc import Set as AbstractSet
from pathlib import Path

from idefics_cli.caption.sinks.lines import LineSink
from idefics_cli.caption.sinks.rows import Value, names, plain_cell, row
from idefics_cli.core.escapes import escaped, escaped_name, plain_name
from idefics_cli.core.files import limited_lines
from idefics_cli.core.types import CaptionRecord

_BOM = "\ufeff"


class CsvSink(LineSink):
    """Writes every record, failures too. A missing value is an empty cell; `; ` joins notes.

    Text that begins with `=` stays unchanged, because training data must not be altered. A
    spreadsheet may read it as a formula, unless the column is imported as text.
    """

    def header(self) -> bytes:
        """Return the names of the columns."""
        return _encode(list(names(self._target.columns)))

    def line(self, record: CaptionRecord, file_name: str) -> bytes:
        """Return the row of *record*."""
        target = self._target
        cells = row(record, self.written(file_name), target.columns, target.fields)
        return _encode([cells.get(name) for name in names(self._target.columns)])

    def written(self, file_name: str) -> str:
        """Return *file_name* with escapes for control characters."""
        return escaped_name(file_name)

    def stored(self, path: Path) -> AbstractSet[str]:
        """Return the names with a caption; see `LineSink.stored`."""
        header = names(self._target.columns)
        status = header.index("status")
        with path.open("rb") as file:
            try:
                rows = list(csv.reader(line.decode() for line in limited_lines(file)))
            except csv.Error as error:
                raise ValueError(str(error)) from error
        if rows and rows[0]:
            rows[0][0] = rows[0][0].removeprefix(_BOM)
        if rows and tuple(rows[0]) != header:
            raise ValueError("it has other columns")
        return {plain_name(cells[0]) for cells in rows[1:] if cells[status : status + 1] == ["ok"]}


class BomCsvSink(CsvSink):
    """Begins with a byte order mark, without which Excel does not read UTF-8; see `CsvSink`."""

    def header(self) -> bytes:
        """Return the mark and the names of the columns."""
        return _BOM.encode() + super().header()


def _encode(cells: list[Value]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in cells])
    return text.getvalue().encode()


def _cell(value: Value) -> str:
    return escaped(plain_cell(value))
