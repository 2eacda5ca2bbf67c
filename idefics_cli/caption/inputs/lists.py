"""The reader of lists of pictures: one path a line, NUL-separated paths, JSON lines, or CSV."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from idefics_cli.caption.item import Columns
from idefics_cli.core.conversation.pictures import PATH_COLUMNS
from idefics_cli.core.errors import InputError, UsageError
from idefics_cli.core.sources import STDIN
from idefics_cli.core.units import counted, format_size

_MOST_BYTES = 2**29
_JSON_LINES = (".jsonl", ".ndjson")
_SEPARATED = (".csv", ".tsv")
# Excel writes semicolons in countries with a decimal comma.
_SEPARATORS = (",", ";", "\t")
_PATH_LIKE = re.compile(r"[./\\]")
_QUOTES = ('"', "'")
_KNOWN = "a column that names the picture is `file_name`, `path`, `image`, `file` or `url`"


@dataclass(frozen=True, slots=True)
class ListEntry:
    """One picture of a list.

    Attributes:
        path: Path or URL as written in the list. A path may hold bytes that are not UTF-8
            (PEP 383).
        line: Number of the first line of the entry, from 1.
        columns: Names and values of the row, including the path; empty in a list of paths.
    """

    path: str
    line: int
    columns: Columns = ()


@dataclass(frozen=True, slots=True)
class FileList:
    """A list of pictures.

    Attributes:
        source: Path of the list, or `-`.
        entries: Entries in the order of the list.
        columns: Names of all columns, in the order of their first use.
        is_table: Whether the list has columns, like `metadata.jsonl` of a data set.
    """

    source: str
    entries: tuple[ListEntry, ...]
    columns: tuple[str, ...] = ()
    is_table: bool = False

    @property
    def folder(self) -> str:
        """Folder of the list; empty for the current folder and for stdin."""
        return "" if self.source == STDIN else os.path.dirname(os.path.expanduser(self.source))


def read_list(
    source: str,
    stdin: BinaryIO | None = None,
    *,
    null: bool = False,
    max_bytes: int = _MOST_BYTES,
) -> FileList:
    """Read a list of pictures.

    The extension decides the format (.csv, .tsv, .jsonl, .ndjson). For any other name, and for
    stdin, the first line decides: it may be a JSON object, or the names of at least two columns.
    All other lists are lists of paths. Blank lines are skipped. A byte order mark and Windows line
    ends are allowed.

    Args:
        source: Path of the list, or `-`.
        stdin: Stream that `-` reads.
        null: Whether each path ends with NUL instead of a line break, as from `find -print0`.
        max_bytes: A list of this size or more is refused, and so is a device without an end.

    Raises:
        InputError: If the list is missing or cannot be read.
        UsageError: If a row is wrong; the message names the line.
    """
    if source == STDIN and stdin is not None:
        data = stdin.read(max_bytes)
    else:
        data = _read(source, max_bytes)
    if len(data) == max_bytes:
        raise UsageError(
            f"{shown(source)} is larger than {format_size(max_bytes)}", hint="split it"
        )
    return parse_list(data, source, null=null)


def parse_list(data: bytes, source: str = STDIN, *, null: bool = False) -> FileList:
    """Return the list in *data*; see `read_list`. *source* is the name of the list."""
    text = _decoded(data, source)
    if null:
        return _nul_paths(text, source)
    if "\0" in text:
        raise UsageError(
            f"{shown(source)} holds NUL bytes",
            hint="`--null` reads a list of `find -print0`; a picture needs no `--filelist`",
        )
    extension = os.path.splitext(source)[1].lower()
    first = next((line for line in text.split("\n", 100) if line.strip()), "")
    if extension == ".json" and first.lstrip().startswith("["):
        raise UsageError(
            f"{shown(source)} is a JSON array, not a list of lines",
            hint="`jq -c '.[]' list.json >list.jsonl` makes it one object a line",
        )
    if extension in _JSON_LINES or _is_object(first):
        return _json_lines(text, source)
    if extension in _SEPARATED or _is_header(first):
        return _separated(text, source)
    lines = enumerate(text.split("\n"), 1)
    paths = ((line.removesuffix("\r"), number) for number, line in lines if line.strip())
    return FileList(source, tuple(ListEntry(_unquoted(path), number) for path, number in paths))


def where(source: str, line: int) -> str:
    """Return the words by which messages name a line of a list."""
    return f"{'stdin' if source == STDIN else f'`{source}`'}, line {line}"


def shown(source: str) -> str:
    """Return the words by which messages name a list."""
    return "the list on stdin" if source == STDIN else f"the list `{source}`"


def _read(source: str, max_bytes: int) -> bytes:
    try:
        with open(os.path.expanduser(source), "rb") as file:
            return file.read(max_bytes)
    except FileNotFoundError:
        raise InputError(
            f"no such list: `{source}`", hint="`--filelist -` reads it from stdin"
        ) from None
    except IsADirectoryError:
        raise InputError(
            f"`{source}` is a folder, not a list", hint=f"`idefics caption {source}`"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot read the list `{source}`: {reason}") from error


def _decoded(data: bytes, source: str) -> str:
    # PowerShell and Excel write UTF-16, with a byte order mark.
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise InputError(f"{shown(source)} is broken UTF-16 text") from None
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _nul_paths(text: str, source: str) -> FileList:
    if "\0" not in text and "\n" in text:
        raise UsageError(
            f"{shown(source)} holds no NUL bytes",
            hint="leave `--null` out for one path a line",
        )
    names = enumerate(text.split("\0"), 1)
    return FileList(source, tuple(ListEntry(name, number) for number, name in names if name))


def _unquoted(line: str) -> str:
    # "Copy as path" of Windows and `ls -Q` write quotes around paths. But quotes may also belong to
    # the name of a file, so they stay if a file with quotes in its name exists.
    is_quoted = len(line) > 2 and line[0] in _QUOTES and line[0] == line[-1]
    return line[1:-1] if is_quoted and not os.path.lexists(line) else line


def _is_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_header(line: str) -> bool:
    separator = _separator(line)
    # A line with a dot or a slash is no header: it is the path of a picture, which may have commas.
    return separator is not None and separator in line and not _PATH_LIKE.search(line)


def _separator(header: str) -> str | None:
    """Return the separator of *header*; None if none of its names is one of `PATH_COLUMNS`."""
    for separator in _SEPARATORS:
        try:
            names = next(csv.reader([header], delimiter=separator), [])
        except csv.Error:  # a picture as a data: URI is longer than a field may be
            continue
        if not {name.strip().lower() for name in names}.isdisjoint(PATH_COLUMNS):
            return separator
    return None


def _json_lines(text: str, source: str) -> FileList:
    entries, names = [], dict[str, None]()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = where(source, number)
        cells = _cells(line, place)
        names.update(dict.fromkeys(cells))
        columns = {name: value_text(value) for name, value in cells.items() if value is not None}
        path = _path(cells, place)
        entries.append(ListEntry(path, number, _checked(columns, path, place)))
    return FileList(source, tuple(entries), tuple(names), is_table=True)


def _cells(line: str, place: str) -> dict[str, object]:
    try:
        cells = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "it is nested too deeply")
        raise UsageError(f"{place}: no valid JSON ({reason})") from None
    if not isinstance(cells, dict):
        hint = 'as in {"file_name": "a.jpg", "subject": "a cat"}'
        raise UsageError(f"{place}: no JSON object", hint=hint)
    return cells


def value_text(value: object) -> str:
    """Return *value*, which comes from JSON, as the text of a column."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _separated(text: str, source: str) -> FileList:
    rows = _rows(text, source)
    header = next(rows, None)
    if header is None:
        return FileList(source, (), is_table=True)
    names = [name.strip() for name in header[1]]
    place = where(source, header[0])
    doubled = next((name for name in names if name and names.count(name) > 1), None)
    if doubled:
        raise UsageError(f"{place}: two columns are named `{doubled}`")
    entries = []
    for number, cells in rows:
        place = where(source, number)
        if len(cells) != len(names):
            columns = counted(len(cells), "column")
            raise UsageError(
                f"{place}: {columns}, and the first line has {len(names)}",
                hint="a value with a separator, quote or line break needs quotes around it",
            )
        row = {name: cell for name, cell in zip(names, cells, strict=True) if name}
        path = _path({name.lower(): cell for name, cell in row.items()}, place)
        entries.append(ListEntry(path, number, _checked(row, path, place)))
    return FileList(source, tuple(entries), tuple(filter(None, names)), is_table=True)


def _rows(text: str, source: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of its first line.

    Raises:
        UsageError: If the first row has no column that names pictures, or quotes do not match.
    """
    first = next((line for line in text.split("\n", 100) if line.strip()), "").rstrip("\r")
    separator = _separator(first)
    if first and separator is None:
        raise UsageError(f"{where(source, 1)}: no column names the pictures", hint=_KNOWN)
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=separator or ",", strict=True)
    start = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UsageError(f"{where(source, start)}: {error}") from None
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield start, row
        start = reader.line_num + 1


def _path(cells: dict[str, object] | dict[str, str], place: str) -> str:
    name = next((name for name in PATH_COLUMNS if cells.get(name) is not None), None)
    if name is None:
        raise UsageError(f"{place}: no column names the picture", hint=_KNOWN)
    path = cells[name]
    if not isinstance(path, str):
        raise UsageError(f"{place}: `{name}` is not text")
    if not path.strip():
        raise UsageError(f"{place}: `{name}` is empty")
    if "\0" in path:
        raise UsageError(f"{place}: `{name}` holds a NUL character")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # JSON can name half of a character, as "\\ud800"
        raise UsageError(
            f"{place}: `{name}` holds a character that no file name can have"
        ) from None
    return path


def _checked(columns: dict[str, str], path: str, place: str) -> Columns:
    """Return *columns*, and check that all values except the path are valid text for prompts."""
    for name, value in columns.items():
        if not value.isascii() and value != path and not _is_text(value):
            raise UsageError(
                f"{place}: `{name}` is not UTF-8 text",
                hint="convert the list, for example with `iconv -t utf-8`",
            )
    return tuple(columns.items())


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def all_columns(lists: Sequence[FileList]) -> tuple[str, ...]:
    """Return the names of the columns of *lists*, each once."""
    return tuple(dict.fromkeys(name for each in lists for name in each.columns))
