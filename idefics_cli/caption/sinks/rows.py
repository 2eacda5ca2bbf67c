"""The columns that all formats share, and the escapes in their text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from idefics_cli.core.sources import as_path, is_uri
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine.schema.form import ColumnKind, JsonValue, ReplyColumn, reply_fields

Value = JsonValue | list[str]
Row = Mapping[str, Value]

# Characters that end a line or a field, move the cursor, start an escape sequence or reorder a
# line: category Cc, the line and paragraph separators, and the bidirectional controls.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# Bytes that were not UTF-8, by PEP 383.
NOT_UTF8 = re.compile("[\ud800-\udfff]")
# All of `UNSAFE` and `NOT_UTF8`, except line feed and tab, which text may have.
UNSAFE_IN_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# A name in which every backslash is doubled, or is part of an escape as `escape` makes it.
_ESCAPED_NAME = re.compile(r"(?:[^\\]|\\(?:\\|x[0-9a-f]{2}|u[0-9a-f]{4}))*")
_IN_NAME = re.compile(r"\\(\\|x..|u....)")

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


def row(
    record: CaptionRecord,
    file_name: str,
    columns: tuple[str, ...],
    fields: tuple[ReplyColumn, ...] = (),
    *,
    nests: bool = False,
) -> dict[str, Value]:
    """Return the values of *record* by column, in the order of `names`, without empty `notes`.

    Args:
        record: The record.
        file_name: The first cell.
        columns: Names of the answers.
        fields: As in `field_cells`, for replies that are JSON objects.
        nests: As in `field_cells`.
    """
    cells: dict[str, Value] = {"file_name": file_name}
    if fields:
        cells |= field_cells(record, fields, nests=nests)
    elif columns:
        answers = dict(record.answers)
        cells |= {name: answers.get(name) for name in columns}
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


def field_cells(
    record: CaptionRecord, fields: Sequence[ReplyColumn], *, nests: bool = False
) -> dict[str, Value]:
    """Return the properties of a reply that is a JSON object, by name; None after an error.

    Args:
        record: The record.
        fields: The properties.
        nests: Whether lists and objects stay what they are. Else values of the kind "json" become
            JSON text.
    """
    if record.caption is None:
        return dict.fromkeys(field.name for field in fields)
    values = reply_fields(record.caption, fields)
    return {
        field.name: _field_cell(values[field.name], field.kind, nests=nests) for field in fields
    }


def _field_cell(value: JsonValue, kind: ColumnKind, *, nests: bool) -> Value:
    if value is None:
        return None
    if kind == "json" and not nests:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # A whole number in a column of floats becomes a float. Otherwise a reader would infer whole
    # numbers from a 1 in the first row, and fail at 0.5.
    return float(value) if kind == "float" and isinstance(value, int) else value


def plain_cell(value: Value) -> str:
    """Return *value* as the text of a cell without a type: `; ` joins a list; None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def sample_name(name: str, number: int) -> str:
    """Return the name of one sample of the answer *name*.

    *number* counts from 0, the names from 1: sample 0 of `caption` is `caption_1`.
    """
    return f"{name}_{number + 1}"


def list_columns(columns: tuple[str, ...], samples: int) -> tuple[str, ...]:
    """Return the names of the lists in which `in_lists` collects the answers *columns*."""
    return tuple(name.rpartition("_")[0] for name in columns[::samples])


def in_lists(cells: Row, columns: tuple[str, ...], samples: int) -> dict[str, Value]:
    """Return *cells* with the samples of each answer as one list, as trainers expect them.

    The training scripts of diffusers take a caption of such a list at random. A failed picture has
    None in place of a list.

    Args:
        cells: A row.
        columns: Names of the answers in the row.
        samples: Number of samples of each answer.
    """
    lists: dict[str, Value] = {"file_name": cells["file_name"]}
    for number, name in enumerate(list_columns(columns, samples)):
        texts = [cells[column] for column in columns[number * samples : (number + 1) * samples]]
        found = [text for text in texts if isinstance(text, str)]
        lists[name] = found or None
    return {**lists, **{name: cells[name] for name in cells if name not in columns}}


def file_name(key: str, output: Path | None) -> str:
    """Return the name of the picture *key* in the rows of *output*.

    A picture below the folder of the output is named relative to it, as in `metadata.jsonl`. Any
    other picture, and every picture on stdout, has its name from the work list.
    """
    if output is None or not is_below(key, output.parent):
        return key
    name = PurePath(os.path.relpath(key, output.parent)).as_posix()
    return as_path(name)


def is_below(key: str, folder: Path) -> bool:
    """Return whether the picture *key* lies in *folder* or below it."""
    if is_uri(key):
        return False
    path, start = os.path.abspath(key), os.path.abspath(folder)
    return path.startswith(start if start.endswith(os.sep) else start + os.sep)


def escaped(text: str) -> str:
    r"""Return *text* with its control characters and non-UTF-8 bytes as `\x1b`, `\u202e`, `\xff`.

    Line feeds and tabs stay, so that proper text is never changed.
    """
    return UNSAFE_IN_TEXT.sub(lambda match: escape(ord(match[0])), text)


def escaped_name(name: str, unsafe: re.Pattern[str] = UNSAFE_IN_TEXT) -> str:
    r"""Return the file name *name* as it stands in rows; `plain_name` is the inverse.

    If a name has characters that match *unsafe*, these are escaped as `escape` does, and each
    backslash is doubled. Almost every other name is unchanged, even with backslashes, so that other
    programs find the file. Its backslashes are doubled only if it looks like an escaped name.
    """
    is_safe = unsafe.search(name) is None
    if is_safe and ("\\" not in name or not _ESCAPED_NAME.fullmatch(name)):
        return name
    doubled = name.replace("\\", r"\\")
    return unsafe.sub(lambda match: escape(ord(match[0])), doubled)


def plain_name(text: str) -> str:
    """Return the file name that `escaped_name` wrote as *text*."""
    if "\\" not in text or not _ESCAPED_NAME.fullmatch(text):
        return text
    return _IN_NAME.sub(lambda match: _meaning(match[1]), text)


def _meaning(code: str) -> str:
    if code == "\\":
        return code
    number = int(code[1:], 16)
    return chr(0xDC00 + number if code[0] == "x" and number >= 0x80 else number)


def escape(code: int) -> str:
    r"""Return the escape of the character *code* as Python writes it, such as `\x1b`.

    A byte that is not UTF-8 is a lone surrogate in a file name (PEP 383). Its escape is `\xff`.
    """
    if 0xDC80 <= code <= 0xDCFF:  # by PEP 383
        return f"\\x{code - 0xDC00:02x}"
    # Above 0x7f, `\x` means a byte, so the characters there are written as `\u0085`.
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"
