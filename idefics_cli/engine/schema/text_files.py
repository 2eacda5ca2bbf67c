"""Small text files that users name: schemas and lists of tags."""

from __future__ import annotations

import os

from idefics_cli.core.errors import InputError, UsageError

_MOST_BYTES = 1_000_000


def read_text(file: str, what: str) -> str:
    """Return the text of the file at the path *file*.

    Args:
        file: The path; `~` is the home folder.
        what: What the file is, for errors: "schema".

    Raises:
        InputError: If it cannot be read, is not UTF-8, or is empty.
        UsageError: If it is longer than a megabyte.
    """
    try:
        with open(os.path.expanduser(file), "rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot read the {what} `{file}`: {reason}") from error
    if len(data) > _MOST_BYTES:
        raise UsageError(f"the {what} `{file}` is longer than {_MOST_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"the {what} `{file}` is not UTF-8 text") from None
    if not text.strip():
        raise InputError(f"the {what} `{file}` is empty")
    return text
