"""The encoding of the lines of a journal: JSON objects with a checksum, whose types are checked."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any

from idefics_cli.core.json_text import parse_json
from idefics_cli.core.types import CaptionRecord

_CHECKSUM = re.compile(rb', "crc": "([0-9a-f]{8})"\}\n')
_CHECKSUM_BYTES = len(b', "crc": "01234567"}\n')
_LARGEST = 2**63 - 1
_OPTIONAL_TEXT = (str, type(None))
_OPTIONAL_INT = (int, type(None))
_RECORD_TYPES: Mapping[str, tuple[type, ...]] = {
    "file_name": (str,),
    "caption": _OPTIONAL_TEXT,
    "error": _OPTIONAL_TEXT,
    "error_kind": _OPTIONAL_TEXT,
    "finish": _OPTIONAL_TEXT,
    "width": _OPTIONAL_INT,
    "height": _OPTIONAL_INT,
    "new_tokens": (int,),
    "seconds": (int, float),
    "hint": _OPTIONAL_TEXT,
    "sha256": _OPTIONAL_TEXT,
    "stamp": _OPTIONAL_TEXT,
    "prompt_tokens": (int,),
}
# Journals of version 0.1.0 lack these fields.
_DEFAULTS: Mapping[str, object] = {"prompt_tokens": 0}


def encode_line(fields: Mapping[str, object]) -> bytes:
    """Return the line for *fields*; its last field is the CRC-32 of the bytes before it."""
    text = json.dumps(fields).encode()
    return text[:-1] + f', "crc": "{zlib.crc32(text):08x}"}}\n'.encode()


# Any: JSON has values of many types.
def decode_line(line: bytes, *, needs_checksum: bool) -> dict[str, Any]:
    """Return the fields of *line*, without the checksum.

    Raises:
        ValueError: If the line is not a JSON object, or its checksum is wrong or missing.
    """
    checksum = _CHECKSUM.fullmatch(line[-_CHECKSUM_BYTES:])
    if checksum is not None:
        line = line[:-_CHECKSUM_BYTES] + b"}"
        if int(checksum[1], 16) != zlib.crc32(line):
            raise ValueError("its checksum is wrong")
    elif needs_checksum:
        raise ValueError("it has no checksum")
    fields = parse_json(line)
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object")
    return fields


_RECORD_FIELDS = tuple(field.name for field in fields(CaptionRecord))
_values_of = attrgetter(*_RECORD_FIELDS)


def encode_record(record: CaptionRecord) -> dict[str, object]:
    """Return the fields of *record* for JSON. `dataclasses.asdict` would copy all of them."""
    return dict(zip(_RECORD_FIELDS, _values_of(record), strict=True))


# Any: JSON has values of many types.
def decode_record(fields: Any) -> CaptionRecord:
    """Return the record from which `encode_record` made *fields*.

    Raises:
        ValueError: If they are not the fields of a record.
    """
    known = _RECORD_TYPES.keys() | {"answers", "notes"}
    if not isinstance(fields, dict) or {*_DEFAULTS, *fields} != known:
        raise ValueError("it has no record")
    fields = {**_DEFAULTS, **fields}
    values = {name: _checked(fields[name], types) for name, types in _RECORD_TYPES.items()}
    answers = _checked(fields["answers"], (list,))
    if any(len(texts(answer)) != 2 for answer in answers):
        raise ValueError("it has an answer without a name")
    return CaptionRecord(
        **values,
        answers=tuple((name, answer) for name, answer in answers),
        notes=tuple(texts(fields["notes"])),
    )


def text(value: object) -> str:
    """Return *value* if it is a string, else raise a ValueError."""
    checked: str = _checked(value, (str,))
    return checked


def texts(value: object) -> list[str]:
    """Return *value* if it is a list of strings, else raise a ValueError."""
    return [text(item) for item in _checked(value, (list,))]


def number(value: object) -> int:
    """Return *value* if it is an integer from 0 to 2^63 - 1, else raise a ValueError."""
    checked: int = _checked(value, (int,))
    return checked


def optional_number(value: object) -> int | None:
    """Return *value* if it is None, or as `number` does."""
    return None if value is None else number(value)


# Any: JSON has values of many types.
def _checked(value: Any, types: tuple[type, ...]) -> Any:
    # `isinstance` would take True for an integer.
    if type(value) not in types:
        raise ValueError(f"it has {type(value).__name__} where {types[0].__name__} belongs")
    if isinstance(value, int | float) and not 0 <= value <= _LARGEST:
        raise ValueError("it has a number out of range")
    return value
