"""Where the pictures of rows are."""

from __future__ import annotations

import os
from pathlib import Path

from idefics_cli.core.escapes import plain_name
from idefics_cli.core.sources import source_of


class PicturePlaces:
    """Finds the pictures that the rows of one file name.

    Paths are relative to the folder of the file. But if the first path that exists there or below
    the current folder exists only below the current folder, all are relative to that one:
    `idefics caption` writes such rows about pictures that are not below the folder of its output.

    Args:
        file: The file.
        images: Folder to which paths are relative instead; None for the rule above.
    """

    def __init__(self, file: Path, images: Path | None) -> None:
        folders = [images] if images else [file.parent, Path()]
        self._folders = list(dict.fromkeys("" if f == Path() else str(f) for f in folders))

    def resolve(self, name: str) -> str:
        """Return the source of the picture that a row calls *name*, which is not a URI."""
        if len(self._folders) > 1:
            found = [folder for folder in self._folders if os.path.lexists(_path(name, folder))]
            if found:
                self._folders = found[:1]
        path = _path(name, self._folders[0])
        if name.startswith("~") and not os.path.lexists(path):
            return os.path.expanduser(name)
        return source_of(path)


def _path(name: str, folder: str) -> str:
    # `idefics caption` writes unusual names with escapes, so the name without escapes is tried
    # first.
    plain = os.path.join(folder, plain_name(name))
    return plain if os.path.lexists(plain) else os.path.join(folder, name)
