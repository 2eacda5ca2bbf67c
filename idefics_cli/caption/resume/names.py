"""The names of pictures in a journal, which do not depend on the current folder."""

from __future__ import annotations

import os
from pathlib import Path

from idefics_cli.core.paths import relative_file
from idefics_cli.core.sources import as_path, is_uri


def identity(file_name: str, folder: Path) -> str:
    """Return the key of a picture in a journal, which does not depend on the current folder.

    Args:
        file_name: As in `CaptionRecord`, relative to the current folder.
        folder: Folder of the output.
    """
    if is_uri(file_name):
        return file_name
    try:
        path = relative_file(file_name, str(folder))
    except ValueError:  # another drive
        return os.path.abspath(file_name)
    name = as_path(path.replace(os.sep, "/"))
    return file_name if name == file_name else name  # one string for both saves memory


def reachable(identity: str, folder: Path) -> str:
    """Return the name of the picture *identity* of a journal, from the current folder.

    Args:
        identity: The result of `identity`.
        folder: Folder of the output.
    """
    if is_uri(identity):
        return identity
    return as_path(Path(os.path.normpath(folder / identity)).as_posix())
