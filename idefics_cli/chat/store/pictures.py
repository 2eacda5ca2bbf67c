"""The copies of pictures that sessions keep, named by the digest of their bytes."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from idefics_cli.chat.attachments import StagedPicture
from idefics_cli.core.errors import SessionError
from idefics_cli.core.files import write_whole
from idefics_cli.core.sources import describe_source, is_clipboard, without_password


class PictureFolder:
    """A folder of picture files that are named by their digests.

    Args:
        path: The folder; made for its owner only when the first picture is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, staged: StagedPicture) -> str:
        """Return the name of the file with the bytes of *staged*; write it if it does not exist.

        Raises:
            OSError: If it cannot be written.
        """
        name = staged.digest + staged.suffix
        target = self.path / name
        if not (target.is_file() and target.stat().st_size == len(staged.data)):
            make_private_folder(self.path)
            write_whole(target, staged.data, private=True)
        return name

    def restore(self, name: str, source: str) -> bool:
        """Return whether the file *name* exists; copy it again from *source* if possible."""
        target = self.path / name
        if target.is_file():
            return True
        try:
            # Opening a pipe would wait for a writer.
            if not os.path.isfile(source):
                return False
            staged = StagedPicture(source, Path(source).read_bytes())
            if staged.digest != name.partition(".")[0]:
                return False
            make_private_folder(self.path)
            write_whole(target, staged.data, private=True)
        except (OSError, ValueError):
            return False
        return True

    def unwanted(self, wanted: Collection[str]) -> list[Path]:
        """Return the files that are not *wanted*, and the unfinished files of killed programs."""
        files = self.path.iterdir() if self.path.is_dir() else ()
        return [file for file in files if file.name not in wanted and file.is_file()]


def make_private_folder(path: Path) -> None:
    """Make the folder *path* and its missing parents for their owner only."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_private_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def unwritable(what: str, error: OSError) -> SessionError:
    """Return the error for *what* cannot be written: a session or a picture."""
    return SessionError(
        f"cannot save {what}: {(error.strerror or str(error)).lower()}",
        hint="free some space or check the permissions; `--no-save` chats without keeping",
    )


def shown_source(source: str) -> str:
    """Return *source* for records: an absolute path, or a short name of a `data:` URI."""
    if source[:5].lower() == "data:" or source == "-":
        return describe_source(source)
    if "://" in source[:12] or is_clipboard(source):
        return without_password(source)
    return os.path.abspath(os.path.expanduser(source))
