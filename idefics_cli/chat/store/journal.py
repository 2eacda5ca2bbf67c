"""The journal of one session: a file of lines on the disk, and a lock."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Self

from idefics_cli.chat.store.lock import FileLock, HeldElsewhereError, holder
from idefics_cli.chat.store.pictures import make_private_folder, unwritable
from idefics_cli.core.append_log import AppendLog, read_lines
from idefics_cli.core.files import write_whole


def lock_path(path: Path) -> Path:
    """Return the lock file of the journal at *path*."""
    return path.with_suffix(".lock")


class SessionJournal:
    """The journal at *path* and the lock on it.

    A new journal has no file before the first line that must not wait; see `append`. `resume` opens
    an existing file. The lock is a separate file, because it names the process that holds it, and
    it is held before the journal exists.

    Args:
        path: The file. If its folder does not exist, it is made for the owner only.

    Attributes:
        size: Size of the file in bytes, up to the last line that was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._waiting = b""
        self._lock: FileLock | None = None
        self._log: AppendLog | None = None

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Lock the journal at *path*, and cut off a torn last line.

        Raises:
            HeldElsewhereError: If another process has it open.
            SessionError: If it cannot be written.
        """
        journal = cls(path)
        journal._lock = _locked(path)
        try:
            journal._log = AppendLog(path, creates=False, is_locked=False, is_synced=True)
            journal.size = sum(len(line) for _, line in read_lines(path))
            journal._log.cut(journal.size)
        except OSError as error:
            journal.close()
            raise unwritable(f"the session `{path}`", error) from error
        return journal

    @classmethod
    def lock_only(cls, path: Path) -> Self:
        """Lock the journal at *path* without reading or writing it.

        Raises:
            HeldElsewhereError: If another process has it open.
        """
        journal = cls(path)
        journal._lock = _locked(path)
        return journal

    def append(self, line: bytes, *, at: int, may_wait: bool = False) -> int:
        """Write *line* to the disk; return the new size.

        Args:
            line: One line with its newline.
            at: As in `AppendLog.append`; 0 makes the file.
            may_wait: Whether to keep the line in memory while the file does not exist, because a
                file with this line alone would be useless.

        Raises:
            SessionError: If the line cannot be written. No part of it is in the file then.
        """
        if at == 0 and may_wait:
            self._waiting += line
            return 0
        try:
            if at == 0:
                self.size = self._create(self._waiting + line)
            elif self._log is None:
                raise ValueError("the journal is closed")
            else:
                self.size = self._log.append(line, at=at)
        except OSError as error:
            raise unwritable(f"the session `{self.path}`", error) from error
        return self.size

    def close(self, *, removes_file: bool = False) -> None:
        """Close the file and release the lock; idempotent.

        Args:
            removes_file: Whether to remove the file before the lock is released.
        """
        if self._log is not None:
            self._log.close()
            self._log = None
            if removes_file:
                with suppress(OSError):
                    self.path.unlink()
        if self._lock is not None:
            self._lock.release()

    def _create(self, data: bytes) -> int:
        make_private_folder(self.path.parent)
        if self._lock is None:
            self._lock = _locked(self.path)
        # The file is written atomically, so that it never exists without its first line.
        write_whole(self.path, data, private=True)
        if self._log is not None:
            self._log.close()
        self._log = AppendLog(self.path, creates=False, is_locked=False, is_synced=True)
        return len(data)


def _locked(path: Path) -> FileLock:
    lock = lock_path(path)
    try:
        return FileLock(lock)
    except HeldElsewhereError as error:
        raise HeldElsewhereError(
            f"session `{path.stem}` is open in {holder(lock)}",
            hint="leave it there, or start another with `idefics chat`",
        ) from error
