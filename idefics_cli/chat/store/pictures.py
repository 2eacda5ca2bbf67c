"""The copies of pictures that sessions keep, named by the digest of their bytes."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path

from idefics_cli.chat.attachments import StagedPicture
from idefics_cli.core.errors import SessionError
from idefics_cli.core.files import is_unfinished, read_regular_file, write_whole
from idefics_cli.core.sources import describe_source, is_clipboard, without_password

PICTURE_NAME = re.compile(r"([0-9a-f]{64})\.[a-z0-9]{1,5}")
"""The name of the copy of a picture: the SHA-256 of its bytes, and a suffix."""
_MOST_BYTES = 1 << 31


class PictureFolder:
    """A folder of picture files that are named by their digests.

    Args:
        path: The folder. It is made with the first picture, for the owner only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, staged: StagedPicture) -> str:
        """Return the name of the file with the bytes of *staged*; write it if it does not exist.

        Raises:
            OSError: If the file cannot be written.
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
            # A session may come from another person and name any file. So the digest is compared
            # first, and a file that is not the picture is not copied.
            if _digest(Path(source)) != name.partition(".")[0]:
                return False
            data = read_regular_file(Path(source), limit_bytes=_MOST_BYTES)
            staged = StagedPicture(source, data)
            if staged.digest != name.partition(".")[0]:
                return False
            make_private_folder(self.path)
            write_whole(target, staged.data, private=True)
        except (OSError, ValueError):
            return False
        return True

    def unwanted(self, wanted: Collection[str], former: Collection[str]) -> list[Path]:
        """Return our files that no session needs. The folder may contain files of the user, too.

        Three kinds of files are ours: pictures that a session named, pictures that are named by
        their own digest, and unfinished files. If the folder is a link, only the first kind is
        known to be ours, because the user may keep other pictures in the folder.

        Args:
            wanted: The names of the pictures that a session needs.
            former: The names of the pictures of the sessions that are removed.
        """
        names = os.listdir(self.path) if self.path.is_dir() else []
        return [
            self.path / name
            for name in names
            if name not in wanted and (name in former or self._is_left_over(self.path / name))
        ]

    def _is_left_over(self, file: Path) -> bool:
        """Whether a killed program left *file* here."""
        if self.path.is_symlink() or file.is_symlink() or not file.is_file():
            return False
        if is_unfinished(file.name):
            return True
        match = PICTURE_NAME.fullmatch(file.name)
        try:
            return match is not None and _digest(file) == match[1]
        except OSError:
            return False


def _digest(file: Path) -> str:
    """Return the SHA-256 of *file* in hexadecimal; "" for a device, a pipe or a huge file.

    Raises:
        OSError: If it cannot be read.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
        return ""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_private_folder(path: Path) -> None:
    """Make the folder *path* and its missing parents for their owner only."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_private_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def unwritable(what: str, error: OSError) -> SessionError:
    """Return the error for *what*, a session or a picture, that cannot be written."""
    return SessionError(
        f"cannot save {what}: {(error.strerror or str(error)).lower()}",
        hint="free some space or check the permissions; `--no-save` chats without saving",
    )


def shown_source(source: str) -> str:
    """Return *source* for records: an absolute path, or a short name of a `data:` URI."""
    if source[:5].lower() == "data:" or source == "-":
        return describe_source(source)
    if "://" in source[:12] or is_clipboard(source):
        return without_password(source)
    return os.path.abspath(os.path.expanduser(source))
