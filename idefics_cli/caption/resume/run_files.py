"""The files of a run beside its output: their paths, and how they are written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from idefics_cli.core.errors import UsageError
from idefics_cli.core.files import (
    cannot_write,
    read_regular_file,
    remove_unfinished,
    write_whole,
)
from idefics_cli.core.sources import is_uri
from idefics_cli.images.folders import has_picture_name

_MOST_LIST_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of a run.

    Attributes:
        journal: The journal, from which the run continues.
        header: The header, which says how the captions were made.
        failures: List of the pictures that failed, one on a line.
    """

    journal: Path
    header: Path
    failures: Path

    ENDS: ClassVar = (".journal", ".run.json", ".failures.txt")

    @classmethod
    def beside(cls, path: Path, *, failures_end: str = ENDS[-1]) -> Self:
        """Return the files of a run.

        Args:
            path: The output; see `Sink.run_path`.
            failures_end: What follows the name of the output in that of the list of failures.
        """
        ends = (*cls.ENDS[:-1], failures_end)
        return cls(*(path.with_name(path.name + end) for end in ends))


def check_failures(path: Path, keys: Collection[str]) -> None:
    """Check that a list of failures may replace *path*: a new file, or an older list of pictures.

    Args:
        path: The file that the user named.
        keys: The pictures of the run.

    Raises:
        UsageError: If the file is another one.
    """
    try:
        data = read_regular_file(path, limit_bytes=_MOST_LIST_BYTES)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot write `{path}`: {reason}") from error
    text = data.decode("utf-8", "surrogateescape")
    names = text.split("\0" if "\0" in text else "\n")
    if all(not n or n in keys or is_uri(n) or has_picture_name(n) for n in names):
        return
    raise UsageError(
        f"`{path}` exists already, and is not a list of pictures",
        hint="name another file for `--failures`",
    )


def write_failures(path: Path, names: Sequence[str]) -> None:
    """List *names* in the file *path*; without names, there is no file.

    Raises:
        IdeficsError: If the file cannot be written.
    """
    if names:
        # A name with a line break, or with white space at an end, would be read back wrongly from
        # lines. If there is such a name, NUL separates all names.
        end = "\0" if any("\n" in name or name != name.strip() for name in names) else "\n"
        text = "".join(name + end for name in names)
        write_beside(path, text.encode("utf-8", "surrogateescape"))
    elif path.is_file():
        path.unlink()


def write_beside(path: Path, data: bytes) -> None:
    """Write *data* to *path*, a file beside the output of this run, whole or not at all.

    Raises:
        IdeficsError: If the file cannot be written.
    """
    try:
        remove_unfinished(path.parent)
        write_whole(path, data)
    except OSError as error:
        raise cannot_write(path, error) from error
