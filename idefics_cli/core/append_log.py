"""Append-only files of lines for one process at a time; a sudden end damages no earlier line."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from idefics_cli.core.files import lacks_locks, limited_lines, lock

# With O_NONBLOCK, opening a pipe or a device does not wait, and its kind can then be checked.
_FLAGS = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the bytes of each line of *path*, its newline included.

    A last line without a newline was torn by a sudden end of the program, and is left out.

    Raises:
        OSError: If the file cannot be read, or has a line of more than 64 MiB. A sparse file can
            have such a line.
    """
    offset = 0
    with path.open("rb") as file:
        for line in limited_lines(file):
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


class AppendLog:
    """An open file of lines.

    Args:
        path: The file.
        creates: Whether to make the file if it does not exist.
        is_locked: Whether to lock the file against other processes until `close`. False for a
            caller that holds another lock.
        is_synced: Whether each line is on the disk before `append` returns.

    Attributes:
        lacks_lock: Whether the file is not locked although *is_locked* is true, because its file
            system has no locks.

    Raises:
        BlockingIOError: If another process has locked the file.
        OSError: If it cannot be opened or locked, or is not a regular file.
    """

    def __init__(self, path: Path, *, creates: bool, is_locked: bool, is_synced: bool) -> None:
        self._is_synced = is_synced
        self.lacks_lock = False
        # The file is not truncated here, because another process may have it open. If the file may
        # be made, *path* must not be a link: it would lead to a file that is not ours, or make a
        # file elsewhere.
        flags = _FLAGS | (os.O_CREAT | _NO_LINK if creates else 0)
        self._descriptor: int | None = os.open(path, flags, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", str(path))
            if is_locked:
                self._lock(self._descriptor)
        except BaseException:
            self.close()
            raise

    def append(self, line: bytes, *, at: int) -> int:
        """Write *line* at the offset *at*, completely or not at all; return the new size.

        Args:
            line: One line with its newline.
            at: The size of the log as far as the caller knows. Bytes after it are cut off. They
                exist if Ctrl-C came after a line was written and before the caller noted the size.

        Raises:
            OSError: If the line cannot be written, or the file was removed.
        """
        descriptor = self._open_descriptor()
        # A process can still write to an open file that was removed, but the line would be lost.
        status = os.fstat(descriptor)
        if status.st_nlink == 0:
            raise FileNotFoundError(2, "the file was removed while it was open")
        try:
            if status.st_size > at:
                os.ftruncate(descriptor, at)
            os.lseek(descriptor, at, os.SEEK_SET)
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
            if self._is_synced:
                os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, at)
            raise
        return at + len(line)

    def cut(self, size: int) -> None:
        """Cut off everything after the first *size* bytes.

        Raises:
            OSError: If the file cannot be changed.
        """
        descriptor = self._open_descriptor()
        if os.fstat(descriptor).st_size > size:
            os.ftruncate(descriptor, size)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._descriptor is None

    def close(self) -> None:
        """Close the file and release its lock; idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, descriptor: int) -> None:
        try:
            lock(descriptor)
        except OSError as error:
            if not lacks_locks(error):
                raise
            self.lacks_lock = True

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError("the log is closed")
        return self._descriptor
