"""One append-only file of lines, written by one process at a time, safe against a sudden end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from idefics_cli.chat.store.lock import FileLock, HeldElsewhereError, holder
from idefics_cli.chat.store.pictures import make_private_folder, unwritable
from idefics_cli.core.files import write_whole


def lock_path(path: Path) -> Path:
    """Return the lock file of the journal at *path*."""
    return path.with_suffix(".lock")


def read_lines(path: Path) -> list[bytes]:
    """Return the lines of the journal at *path* without the one that was not finished, if any.

    Raises:
        OSError: If it cannot be read.
    """
    # After the last newline is either nothing or the line that a sudden end tore.
    return path.read_bytes().split(b"\n")[:-1]


class SessionJournal:
    """The journal at *path* and the lock on it.

    Made and locked by the first line that may not wait; `resume` opens one that is there.

    Args:
        path: The file; its folder is made, for the owner only, with it.

    Attributes:
        size: Of the file, in bytes, after the last line that was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._waiting = b""
        self._lock: FileLock | None = None
        self._descriptor: int | None = None

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Lock the journal at *path* and cut a torn last line off.

        Raises:
            HeldElsewhereError: If another process has it open.
            SessionError: If it cannot be written.
        """
        journal = cls(path)
        journal._lock = _locked(path)
        try:
            journal._descriptor = os.open(path, os.O_RDWR | _BINARY | os.O_APPEND)
            whole = sum(len(line) + 1 for line in read_lines(path))
            if whole < path.stat().st_size:
                os.ftruncate(journal._descriptor, whole)
            journal.size = whole
        except OSError as error:
            journal.close()
            raise unwritable(f"the session `{path}`", error) from error
        return journal

    @classmethod
    def hold(cls, path: Path) -> Self:
        """Lock the journal at *path*, and neither read nor write it.

        Raises:
            HeldElsewhereError: If another process has it open.
        """
        journal = cls(path)
        journal._lock = _locked(path)
        return journal

    def append(self, line: bytes, *, at: int, may_wait: bool = False) -> int:
        """Bring *line*, with its newline, to the disk; return the new size.

        Args:
            line: One line.
            at: The size after the last line that counts. Ctrl-C may come when a line is written
                and the caller does not know yet: what is behind is cut off.
            may_wait: It is of no use alone: while the file is not made, keep it until it is.

        Raises:
            SessionError: If it cannot be written; then nothing of it is in the file.
        """
        if at == 0 and may_wait:
            self._waiting += line
            return 0
        try:
            if at == 0:
                self._begin(self._waiting + line)
            else:
                self._write(line, at)
        except OSError as error:
            raise unwritable(f"the session `{self.path}`", error) from error
        self.size = at + len(line) if at else len(self._waiting + line)
        return self.size

    def close(self) -> None:
        """Let others open it; idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._lock is not None:
            self._lock.release()

    def _begin(self, data: bytes) -> None:
        make_private_folder(self.path.parent)
        if self._lock is None:
            self._lock = _locked(self.path)
        # At once, so that there is never a file without a beginning.
        write_whole(self.path, data, private=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | _BINARY)

    def _write(self, data: bytes, at: int) -> None:
        if self._descriptor is None:
            raise ValueError("the journal is closed")
        status = os.fstat(self._descriptor)
        # What is written to a file that was removed is gone with us.
        if status.st_nlink == 0:
            raise FileNotFoundError(2, "the file was removed while it was open")
        try:
            if status.st_size > at:
                os.ftruncate(self._descriptor, at)
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            os.fsync(self._descriptor)
        except BaseException:
            os.ftruncate(self._descriptor, at)
            raise


_BINARY = getattr(os, "O_BINARY", 0)


def _locked(path: Path) -> FileLock:
    lock = lock_path(path)
    try:
        return FileLock(lock)
    except HeldElsewhereError as error:
        raise HeldElsewhereError(
            f"session `{path.stem}` is open in {holder(lock)}",
            hint="leave it there, or begin another with `idefics chat`",
        ) from error
