"""What tells that a file is still the one that was captioned."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.sources import is_uri


@dataclass(frozen=True, slots=True)
class FileContent:
    """What was in a file: the fields of `CaptionRecord` of the same names."""

    sha256: str | None = None
    stamp: str | None = None


def read_content(picture: CaptionItem) -> FileContent:
    """Return what identifies the content of *picture*; nothing for what is no readable file."""
    source = picture.attachment.source
    if is_uri(source):
        return FileContent(None, stamp_of(picture))
    # Read for its digest, a file is in the memory of the system when it is opened to be decoded.
    stamp = stamp_of(picture)
    if not os.path.isfile(source):  # a pipe may have no end
        return FileContent(None, stamp)
    try:
        with open(source, "rb") as file:
            return FileContent(hashlib.file_digest(file, "sha256").hexdigest(), stamp)
    except OSError:  # told by who opens it as a picture
        return FileContent(None, stamp)


def stamp_of(picture: CaptionItem) -> str | None:
    """Return what tells that *picture* is as it was: its file's stamp, `#`, its columns' digest.

    While size and time of change are the same, the content of a file is taken to be. What is no
    file has nothing before the `#`, and a picture without columns nothing from it on; with
    neither it is None.
    """
    source = picture.attachment.source
    stamp = None if is_uri(source) else stamp_of_file(source)
    if not picture.columns:
        return stamp
    columns = hashlib.sha256(repr(sorted(picture.columns)).encode("utf-8", "surrogateescape"))
    return f"{stamp or ''}#{columns.hexdigest()[:16]}"


def stamp_of_file(path: str | os.PathLike[str]) -> str | None:
    """Return the size and time of change of a file; None if it is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: NUL in the name
        return None
    return f"{status.st_size}-{status.st_mtime_ns}"
