"""The columns that all formats share, and how text is made fit for them."""

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
# The same in text that may have lines and tabs, with bytes that were no UTF-8.
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
"""What a row tells besides the picture and its captions, in order."""


def names(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of all columns of a run with the questions *columns*."""
    return ("file_name", *(columns or (CAPTION,)), *DETAILS)


def row(record: CaptionRecord, file_name: str, columns: tuple[str, ...]) -> dict[str, Value]:
    """Return *record* by column, in the order of `names`; `notes` only if there are any."""
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
    """Return how rows of *output* name the picture *key*.

    A picture below the folder of the file is named from there, as `metadata.jsonl` has it; any
    other, and all on stdout, as it was listed.
    """
    if output is None or is_uri(key):
        return key
    path, folder = os.path.abspath(key), os.path.abspath(output.parent)
    if not path.startswith(folder if folder.endswith(os.sep) else folder + os.sep):
        return key
    name = PurePath(os.path.relpath(path, folder)).as_posix()
    # As in listings, a file with the name of a URI says that it is none.
    return f"./{name}" if is_uri(name) else name


def escaped(text: str) -> str:
    r"""Return *text* with what could harm a terminal or is no UTF-8 as `\x1b`, `\u202e`, `\xff`.

    Lines and tabs stay. So a caption is only altered where it is no text.
    """
    return _UNSAFE_IN_TEXT.sub(lambda match: escape(ord(match[0])), text)


def escape(code: int) -> str:
    r"""Return the character *code* as Python writes it; a byte that was no UTF-8 as `\xff`."""
    if 0xDC80 <= code <= 0xDCFF:  # by PEP 383
        return f"\\x{code - 0xDC00:02x}"
    # Above 0x7f, `\x` means a byte, so the characters there are written as `\u0085`.
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"
