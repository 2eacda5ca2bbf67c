"""Rows of files, one at a time: JSON lines, a JSON array, CSV, TSV or Parquet."""

from __future__ import annotations

import codecs
import csv
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, TextIO

from idefics_cli.core.conversation.pictures import COLUMNS
from idefics_cli.core.errors import InputError, PromptError, UsageError
from idefics_cli.core.files import limited_lines
from idefics_cli.core.json_objects import JsonObject, decode_object
from idefics_cli.core.units import counted

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# An object may hold pictures as data: URIs, so it can be long.
_MOST_OBJECT_CHARACTERS = 64 * 2**20
_MOST_LINE_CHARACTERS = 2**22
_BLOCK_CHARACTERS = 2**20
# Excel writes semicolons in countries with a decimal comma.
_SEPARATORS = (",", ";", "\t")
# Few rows are read at a time, because a row may hold the bytes of a picture.
_BATCH_ROWS = 16
_QUOTES = "a value with a separator, quote or line break needs quotes around it"


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row of a file.

    Attributes:
        key: The name of the row in messages, such as `chats.jsonl:12`.
        cells: Names and values.
        fault: Why the row is not an object; None if it is one.
    """

    key: str
    cells: JsonObject = field(default_factory=dict)
    fault: PromptError | None = None


def read_file(path: Path) -> Iterator[FileRow]:
    """Yield the rows of *path*; its extension says what it is. Memory holds a few rows at a time.

    Raises:
        InputError: If the file is missing or cannot be read.
        UsageError: If it is no training data, or what follows a row cannot be known.
    """
    read = FORMATS.get(path.suffix.lower())
    if read is None:
        known = ", ".join(FORMATS)
        raise UsageError(
            f"`{path}` is not training data", hint=f"it is a folder or a file: {known}"
        )
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"`{path}` is not a regular file")
        yield from read(path)
    except UnicodeDecodeError:
        raise InputError(
            f"`{path}` is not UTF-8 text", hint="convert it, for example with `iconv -t utf-8`"
        ) from None
    except FileNotFoundError:
        raise InputError(f"no such file: `{path}`") from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = error.strerror if isinstance(error, OSError) else None
        raise InputError(f"cannot read `{path}`: {reason or error}") from error


def known_name(name: str) -> str:
    """Return the name of a column; of one that names pictures, as this package writes it."""
    name = name.strip()
    return name.lower() if name.lower() in COLUMNS else name


def _json_lines(path: Path) -> Iterator[FileRow]:
    with path.open("rb") as file:
        if _first_character(file, path) == b"[":
            yield from _json_array(path)
            return
        for number, line in enumerate(limited_lines(file), 1):
            text = line.removeprefix(codecs.BOM_UTF8).strip()
            if text:
                hint = "a row is one JSON object on one line"
                yield _decoded(f"{path}:{number}", text, hint)


def _json_array(path: Path) -> Iterator[FileRow]:
    with path.open("rb") as file:
        if _first_character(file, path) != b"[":
            yield from _json_lines(path)
            return
    with path.open(encoding="utf-8-sig") as texts:
        for number, text in enumerate(_elements(texts, path), 1):
            yield _decoded(f"{path} row {number}", text.encode("utf-8", "surrogatepass"), None)


def _first_character(file: BinaryIO, path: Path) -> bytes:
    """Return the first character of JSON text that is no white space, and go to its start."""
    head = file.read(4096)
    file.seek(0)
    if head.startswith(_UTF16) or b"\0" in head:
        raise InputError(
            f"`{path}` is not UTF-8 text", hint="convert it, for example with `iconv -t utf-8`"
        )
    return head.removeprefix(codecs.BOM_UTF8).lstrip()[:1]


def _decoded(key: str, text: bytes, hint: str | None) -> FileRow:
    try:
        return FileRow(key, decode_object(text, syntax_hint=hint))
    except PromptError as error:
        return FileRow(key, fault=error)


def _elements(file: TextIO, path: Path) -> Iterator[str]:
    """Yield the text of each element of a JSON array, without reading all of it."""
    buffer, number = _Buffer(file), 1
    buffer.skip("[")
    while (first := buffer.peek()) != "]":
        if not first:
            raise UsageError(f"`{path}` ends before its JSON array does", hint="is it complete?")
        end = _find_end(buffer, f"`{path}` row {number}")
        yield buffer.text[buffer.at : end]
        buffer.at, number = end, number + 1
        if buffer.peek() not in ("]", ""):
            buffer.skip(",", f"`{path}` row {number}: no comma before it")
    buffer.at += 1
    if buffer.peek():
        raise UsageError(f"`{path}` has more text after its JSON array")


def _find_end(buffer: _Buffer, row: str) -> int:
    """Return the end of the JSON value at the place of *buffer*, which grows until it has it."""
    decoder = json.JSONDecoder()
    while True:
        try:
            _, end = decoder.raw_decode(buffer.text, buffer.at)
        except (ValueError, RecursionError) as error:
            is_long = len(buffer.text) - buffer.at > _MOST_OBJECT_CHARACTERS
            if not is_long and buffer.grow():
                continue
            reason = f"it has no end within {_MOST_OBJECT_CHARACTERS >> 20} MiB"
            if isinstance(error, RecursionError):
                reason = "it is nested too deeply"
            elif not is_long:
                reason = getattr(error, "msg", str(error))
            raise UsageError(f"{row}: no valid JSON ({reason})") from None
        if end < len(buffer.text):
            return end
        # If a number ends exactly where the buffer ends, further digits of the number may follow.
        end -= buffer.at
        if not buffer.grow():
            return end


class _Buffer:
    """The part of a text around the place of a parser."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.text = ""
        self.at = 0

    def grow(self) -> bool:
        """Read on, at least as much as is left; return whether there was more."""
        self.text = self.text[self.at :]
        self.at = 0
        more = self._file.read(max(_BLOCK_CHARACTERS, len(self.text)))
        self.text += more
        return bool(more)

    def peek(self) -> str:
        """Return the next character that is no white space; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def skip(self, character: str, fault: str = "") -> None:
        """Go behind *character*, which must be the next one."""
        if self.peek() != character:
            raise UsageError(fault)
        self.at += 1


def _separated(path: Path) -> Iterator[FileRow]:
    with path.open("rb") as file:
        head = file.read(2)
    # PowerShell and Excel write UTF-16, with a byte order mark.
    encoding = "utf-16" if head in _UTF16 else "utf-8-sig"
    with path.open(encoding=encoding, newline="") as texts:
        rows = _numbered(texts, path)
        header = next(rows, None)
        if header is None:
            return
        names = [known_name(name) for name in header[1]]
        if doubled := next((n for n in names if n and names.count(n) > 1), None):
            raise UsageError(f"{path}:{header[0]}: two columns are named `{doubled}`")
        for number, cells in rows:
            key = f"{path}:{number}"
            if len(cells) == len(names):
                yield FileRow(key, dict(zip(names, cells, strict=True)))
                continue
            count = counted(len(cells), "column")
            fault = PromptError(
                f"{count}, and the first line has {len(names)}",
                hint=_QUOTES,
            )
            yield FileRow(key, fault=fault)


def _numbered(file: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table that are not blank, each with the number of its first line."""
    lines = _text_lines(file, path)
    first = next((line for line in lines if line.strip()), "")
    if not first:
        return
    separator = _separator(first)
    if separator is None:
        raise UsageError(
            f"{path}:1: no column names the pictures",
            hint="the first line names the columns, as in `file_name,caption`",
        )
    file.seek(0)
    reader = csv.reader(_text_lines(file, path), delimiter=separator, strict=True)
    start = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UsageError(f"{path}:{start}: {error}", hint=_QUOTES) from None
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield start, row
        start = reader.line_num + 1


def _text_lines(file: TextIO, path: Path) -> Iterator[str]:
    number = 0
    while line := file.readline(_MOST_LINE_CHARACTERS + 1):
        number += 1
        if len(line) > _MOST_LINE_CHARACTERS or "\0" in line:
            fault = "NUL characters" if "\0" in line else "more than 4 million characters"
            raise UsageError(f"{path}:{number}: {fault}")
        yield line


def _separator(header: str) -> str | None:
    """Return the separator of *header*: that which gives a known column, or else most columns.

    None if there is one column only, and its name is not known.
    """
    most, found = 1, None
    for separator in _SEPARATORS:
        try:
            names = next(csv.reader([header.strip("\r\n")], delimiter=separator), [])
        except csv.Error:
            continue
        if not {name.strip().lower() for name in names}.isdisjoint(COLUMNS):
            return separator
        if len(names) > most:
            most, found = len(names), separator
    return found


def _parquet(path: Path) -> Iterator[FileRow]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UsageError(
            f"`{path}` needs the library pyarrow", hint="pip install 'idefics-cli[parquet]'"
        ) from None
    # The path is absolute, because pyarrow reads a relative name with a colon as a URI.
    try:
        with ParquetFile(path.absolute(), pre_buffer=False) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for cells in batch.to_pylist():
                    number += 1
                    yield FileRow(f"{path} row {number}", cells)
    except (ArrowException, TypeError, AttributeError) as error:
        raise InputError(f"cannot read `{path}`: {str(error).partition(chr(10))[0]}") from error


FORMATS: Mapping[str, Callable[[Path], Iterator[FileRow]]] = MappingProxyType(
    {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json_array,
        ".csv": _separated,
        ".tsv": _separated,
        ".parquet": _parquet,
    }
)
"""The reader of each file format, by the extension."""
