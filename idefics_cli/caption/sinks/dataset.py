"""Checks of outputs such as `metadata.jsonl`, which the library `datasets` reads with the pictures.

The builder "imagefolder" of `datasets` expects a picture below the folder of the file for every
row. If one row has no such picture, it cannot read the data set at all (datasets 5.2,
folder_based_builder.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from idefics_cli.caption.sinks.rows import file_name, is_below
from idefics_cli.core.errors import UsageError
from idefics_cli.images.tars import split_member

_NAMES = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet"})
# fsspec or `os.path.expandvars` would change these parts of a name, and `datasets` passes names to
# both. So `datasets` would not find such a picture.
_UNREADABLE = {
    "\\": re.compile(r"\\"),
    "::": re.compile("::"),
    "$": re.compile(r"\$[\w{]"),
}


# `datasets` reads a file whose name contains one of these words as a split of the data set
# (datasets 5.2, data_files.py).
_SPLIT = re.compile(
    r"(?:^|[-._ 0-9/])"
    r"(?:train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?=[-._ 0-9/])"
)


def is_dataset(path: Path | None) -> bool:
    """Return whether `datasets` takes the file *path* for the rows of a data set."""
    return path is not None and path.name in _NAMES


def check_dataset(path: Path, keys: Iterable[str], columns: Iterable[str]) -> None:
    """Check that the data set *path* can have these pictures and questions.

    Args:
        path: The output.
        keys: The pictures.
        columns: Names of the questions.

    Raises:
        UsageError: If `datasets` cannot read them.
    """
    other = f"another name than `{path.name}`"
    for key in keys:
        if not is_below(key, path.parent):
            raise UsageError(
                f"`{path}` is a data set, and the picture `{key}` is not below its folder",
                hint=f"write it to the folder of the pictures, or choose {other}",
            )
        if split_member(key) is not None:
            raise UsageError(
                f"`{path}` is a data set, and the picture `{key}` is in an archive",
                hint=f"unpack the archive, or choose {other}",
            )
    for column in columns:
        # In columns with these names, "imagefolder" of `datasets` expects the names of picture
        # files.
        if column == "image" or re.fullmatch(r"(?:\w+_)?file_names?", column):
            raise UsageError(
                f"`{path}` is a data set, in which `{column}` cannot be the name of a question",
                hint=f"name the question differently, or choose {other}",
            )


def split_note(path: Path, keys: Iterable[str]) -> str | None:
    """Return a note if `datasets` reads only a part of the data set *path*, as splits.

    Args:
        path: The output.
        keys: The pictures.
    """
    names = (file_name(key, path) for key in keys)
    if (name := next(filter(_SPLIT.search, names), None)) is None:
        return None
    return (
        f"because of its name, `datasets` reads `{name}` as a split, without `{path}`; "
        "README says how to load all pictures"
    )


def unreadable_part(name: str, written: str) -> str | None:
    """Return why `datasets` would not find the picture *name*, as the end of a sentence.

    Args:
        name: The name.
        written: The name as it would stand in the row.

    Returns:
        None if `datasets` would find the picture.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return "that is not UTF-8"
    if (
        part := next((p for p, form in _UNREADABLE.items() if form.search(name)), None)
    ) is not None:
        return f"with `{part}`"
    return None if written == name else "with control characters"
