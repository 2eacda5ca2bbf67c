"""The columns that all formats share, and the escapes in their text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from idefics_cli.core.paths import relative_file
from idefics_cli.core.sources import as_path, is_uri
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine.schema.form import ColumnKind, JsonValue, ReplyColumn, reply_fields

Value = JsonValue | list[str]
Row = Mapping[str, Value]

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
    if output is None or is_uri(key):
        return key
    try:
        name = relative_file(key, _folder(output)).replace(os.sep, "/")
    except ValueError:  # another drive
        return key
    return key if name == ".." or name.startswith("../") else as_path(name)


@lru_cache(maxsize=8)
def _folder(output: Path) -> str:
    return str(output.parent)


def is_below(key: str, folder: Path) -> bool:
    """Return whether the picture *key* lies in *folder* or below it."""
    if is_uri(key):
        return False
    path, start = os.path.abspath(key), os.path.abspath(folder)
    return path.startswith(start if start.endswith(os.sep) else start + os.sep)
