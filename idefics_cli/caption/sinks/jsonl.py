"""One JSON object per line, in the layout of `metadata.jsonl` that dataset tools read."""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from pathlib import Path

from idefics_cli.caption.sinks.lines import LineSink
from idefics_cli.caption.sinks.rows import UNSAFE, Row, row
from idefics_cli.core.types import CaptionRecord


class JsonlSink(LineSink):
    """Writes every record, failures too, with all columns; `notes` only if there are notes."""

    def line(self, record: CaptionRecord, file_name: str) -> bytes:
        """Return the row of *record*; see `encode`."""
        return encode(row(record, file_name, self._target.columns))

    def stored(self, path: Path) -> AbstractSet[str]:
        """Return the names with a caption; see `LineSink.stored`."""
        names = set()
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                cells = json.loads(line) if line.strip() else None
                if cells is None:
                    continue
                if not isinstance(cells, dict) or not isinstance(cells.get("file_name"), str):
                    raise ValueError(f"line {number} has no `file_name`")
                if cells.get("status", "ok") == "ok":
                    names.add(cells["file_name"])
        return names


def encode(cells: Row) -> bytes:
    r"""Return *cells* as one line of UTF-8, with control characters escaped.

    A byte of a file name that is not UTF-8 is written as its surrogate (`\udcff`, PEP 383),
    which Python's `json` and `os.fsencode` turn back into the byte.
    """
    text = json.dumps(cells, ensure_ascii=False)
    text = UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    # UTF-8 cannot hold lone surrogates; Python escapes them in the same way as JSON.
    return text.encode(errors="backslashreplace") + b"\n"
