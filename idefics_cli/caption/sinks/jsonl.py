"""The format JSON lines, in the layout of `metadata.jsonl`, which dataset tools read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from idefics_cli.caption.sinks.lines import LineSink
from idefics_cli.caption.sinks.rows import Value, in_lists, row
from idefics_cli.core.escapes import NOT_UTF8, UNSAFE, escape, escaped_name, plain_name
from idefics_cli.core.files import limited_lines
from idefics_cli.core.types import CaptionRecord


class JsonlSink(LineSink):
    """Writes every record, failures too, with all columns; `notes` only if there are notes.

    A data set has only captions, and no failures. It always has `notes`, as one text.
    """

    has_types = False
    """Whether the format of the output has types for its columns."""

    def line(self, record: CaptionRecord, file_name: str) -> bytes:
        """Return the row of *record*; see `encode`."""
        return encode(self.cells(record, self.written(file_name)))

    def cells(self, record: CaptionRecord, written: str) -> dict[str, Value]:
        """Return the values of *record* by column; *written* is the name of the picture."""
        target, nests = self._target, not self.has_types
        cells = row(record, written, target.columns, target.fields, nests=nests)
        if self._target.is_dataset and not self.has_types:
            # `datasets` infers the columns and their types from the first rows, so every row has
            # notes, with the same type.
            cells["notes"] = "; ".join(record.notes)
        samples = self._target.samples
        return cells if samples == 1 else in_lists(cells, self._target.columns, samples)

    def written(self, file_name: str) -> str:
        """Return *file_name* with escapes for bytes that are not UTF-8; JSON escapes the rest."""
        return escaped_name(file_name, NOT_UTF8)

    def stored(self, path: Path) -> AbstractSet[str]:
        """Return the names with a caption; see `LineSink.stored`."""
        names = set()
        with path.open("rb") as file:
            for number, line in enumerate(limited_lines(file), 1):
                cells = json.loads(line) if line.strip() else None
                if cells is None:
                    continue
                if not isinstance(cells, dict) or not isinstance(cells.get("file_name"), str):
                    raise ValueError(f"line {number} has no `file_name`")
                if cells.get("status", "ok") == "ok":
                    names.add(plain_name(cells["file_name"]))
        return names


_ENCODER = json.JSONEncoder(ensure_ascii=False)  # `json.dumps` would make one for each row


def encode(cells: Mapping[str, object]) -> bytes:
    r"""Return *cells* as one line of UTF-8, with control characters escaped.

    A byte that is not UTF-8 becomes the text `\xff`. Python has it as a lone surrogate (PEP 383),
    and other programs refuse a file with lone surrogates.
    """
    text = _ENCODER.encode(cells)
    text = UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    text = NOT_UTF8.sub(lambda match: f"\\{escape(ord(match[0]))}", text)
    return text.encode() + b"\n"
