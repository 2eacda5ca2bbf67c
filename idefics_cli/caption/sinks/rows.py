"""The columns that all formats share, and the escapes in their text."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath

from idefics_cli.core.sources import is_uri
from idefics_cli.core.types import CaptionRecord

Value = str | int | float | list[str] | None
Row = Mapping[str, Value]

# Characters that end a line or a field, move the cursor, start an escape sequence or reorder a
# line: category Cc, the line and paragraph separators, and the bidirectional controls.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# The same without line feed and tab, which text may have, and with bytes that were not UTF-8.
_UNSAFE_IN_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

CAPTION = "caption"
DETAILS: Mapping[str, type] = {
    "status": str,
    "error": str,
    "error_kind": str,
    "finish": str,
    "width": int,
    "height": int,
    "sha256": str,
    "tokens": int,
    "seconds": float,
    "notes": list,
}
"""Names and types of the columns after the picture and its captions, in order."""


def names(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of all columns of a run with the questions *columns*."""
    return ("file_name", *(columns or (CAPTION,)), *DETAILS)


def row(record: CaptionRecord, file_name: str, columns: tuple[str, ...]) -> dict[str, Value]:
    """Return the values of *record* by column, in the order of `names`.

    There is a value for `notes` only if the record has notes.
    """
    answers = dict(record.answers)
    cells: dict[str, Value] = {"file_name": file_name}
    if columns:
        cells.update({name: answers.get(name) for name in columns})
    else:
        cells[CAPTION] = record.caption
    cells.update(
        status="ok" if record.error is None else "error",
        error=record.error,
        error_kind=record.error_kind,
        finish=record.finish,
        width=record.width,
        height=record.height,
        sha256=record.sha256,
        tokens=record.new_tokens,
        seconds=round(record.seconds, 3),
    )
    if record.notes:
        cells["notes"] = list(record.notes)
    return cells


def file_name(key: str, output: Path | None) -> str:
    """Return the name of the picture *key* in the rows of *output*.

    A picture below the folder of the output is named relative to it, as in `metadata.jsonl`. Any
    other picture, and every picture on stdout, has its name from the work list.
    """
    if output is None or is_uri(key):
        return key
    path, folder = os.path.abspath(key), os.path.abspath(output.parent)
    if not path.startswith(folder if folder.endswith(os.sep) else folder + os.sep):
        return key
    name = PurePath(os.path.relpath(path, folder)).as_posix()
    # As in a work list, the name of a file that looks like a URI starts with `./`.
    return f"./{name}" if is_uri(name) else name


def escaped(text: str) -> str:
    r"""Return *text* with its control characters and non-UTF-8 bytes as `\x1b`, `\u202e`, `\xff`.

    Line feeds and tabs stay, so that proper text is never changed.
    """
    return _UNSAFE_IN_TEXT.sub(lambda match: escape(ord(match[0])), text)


def escape(code: int) -> str:
    r"""Return the escape of the character *code*, as in Python; `\xff` for a byte of PEP 383."""
    if 0xDC80 <= code <= 0xDCFF:  # by PEP 383
        return f"\\x{code - 0xDC00:02x}"
    # Above 0x7f, `\x` means a byte, so the characters there are written as `\u0085`.
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"
