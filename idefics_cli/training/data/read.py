"""The readers of training data, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from idefics_cli.core.errors import InputError, UsageError
from idefics_cli.core.json_objects import JsonObject
from idefics_cli.training.data.chats import is_chat, read_chats
from idefics_cli.training.data.files import FORMATS, read_file
from idefics_cli.training.data.imagefolder import has_metadata, read_image_folder
from idefics_cli.training.data.options import ReadOptions
from idefics_cli.training.data.row import RowResult
from idefics_cli.training.data.sidecars import has_sidecars, read_sidecars
from idefics_cli.training.data.table import column_hint, is_table, read_table

Read: TypeAlias = Callable[[Path, ReadOptions], Iterator[RowResult]]


@dataclass(frozen=True, slots=True)
class Reader:
    """The reader of one shape of training data.

    Attributes:
        name: The shape, in messages.
        recognises: Returns whether a file or folder has the shape, if it is read so.
        read: Yields its rows.
    """

    name: str
    recognises: Callable[[Path, ReadOptions], bool]
    read: Read


def _first_row(
    test: Callable[[JsonObject, ReadOptions], bool],
) -> Callable[[Path, ReadOptions], bool]:
    """Return a test of files: whether *test* holds for the first row that is an object."""

    def recognises(path: Path, options: ReadOptions) -> bool:
        return not path.is_dir() and test(_first_cells(path), options)

    return recognises


def _folder(test: Callable[[Path], bool]) -> Callable[[Path, ReadOptions], bool]:
    return lambda path, options: path.is_dir() and test(path)


def _first_cells(path: Path) -> JsonObject:
    return next((row.cells for row in read_file(path) if row.fault is None), {})


READERS = (
    Reader("a folder with metadata", _folder(has_metadata), read_image_folder),
    Reader("pictures with text files beside them", _folder(has_sidecars), read_sidecars),
    Reader("conversations", _first_row(is_chat), read_chats),
    Reader("a table of pictures", _first_row(is_table), read_table),
)
"""The readers, in the order in which they are tried."""


def check_exists(data: Path) -> None:
    """Raise InputError if *data* is no file and no folder."""
    if not data.exists():
        raise InputError(f"no such file or folder: `{data}`")


def find_reader(data: Path, options: ReadOptions) -> Reader:
    """Return the reader of *data*, which is read with *options*.

    Raises:
        InputError: If nothing is there, it cannot be read, or it has no rows to train on.
        UsageError: If it has an unknown shape.
    """
    check_exists(data)
    reader = next((reader for reader in READERS if reader.recognises(data, options)), None)
    if reader is not None:
        return reader
    if data.is_dir():
        file = next((f for f in sorted(data.iterdir()) if f.suffix.lower() in FORMATS), None)
        raise InputError(
            f"no captions in the folder `{data}`",
            hint=f"name the file itself: `{file}`"
            if file
            else "each picture needs a text file beside it, as `a.txt` beside `a.jpg`, or a row "
            "of `metadata.jsonl`; `idefics caption` writes both",
        )
    first = next(read_file(data), None)
    if first is not None and first.fault is not None:
        raise UsageError(f"{first.key}: {first.fault}", hint=first.fault.hint)
    nothing, cells = f"`{data}` has no rows to train on", _first_cells(data)
    if cells:
        raise UsageError(
            f"{nothing}: no column names the pictures", hint=column_hint("--picture", cells)
        )
    hint = "a row names a picture by `file_name` and has a `caption`; or it has `messages`"
    raise InputError(nothing, hint=hint)


def check_has_rows(data: Path, options: ReadOptions) -> None:
    """Check that *data* has a row, or part of one; `read_rows` would find it.

    Raises:
        InputError: If there is none, or it cannot be read.
        UsageError: If it has an unknown shape.
    """
    if next(read_rows(data, options), None) is None:
        raise InputError(f"`{data}` has no rows to train on")


def read_rows(data: Path, options: ReadOptions) -> Iterator[RowResult]:
    """Yield the rows of *data*, one at a time.

    Args:
        data: A folder, or a file.
        options: How it is read.

    Raises:
        InputError: If it cannot be read.
        UsageError: If it has an unknown shape.
    """
    yield from find_reader(data, options).read(data, options)
