"""The text file that holds the caption of one picture."""

from __future__ import annotations

import errno
from pathlib import Path

from idefics_cli.core.files import read_regular_file

_MOST_BYTES = 2**20


def read_caption(path: Path) -> bytes:
    """Return the content of the text file *path*, with newlines as line ends.

    The folder may come from anybody: a name there can be a link to a device without an end, or a
    pipe that nobody writes to.

    Raises:
        OSError: If it cannot be read, is not a regular file, or is larger than 1 MiB.
        ValueError: If no file can have this name.
    """
    try:
        content = read_regular_file(path, limit_bytes=_MOST_BYTES)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise OSError(errno.EFBIG, "it is larger than 1 MiB", str(path)) from error
        raise
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
