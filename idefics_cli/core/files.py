"""Files that are read with a limit or written atomically, and locks on open files."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import sys
from pathlib import Path

from idefics_cli.core.errors import IdeficsError

UNFINISHED = ".part"
_UNFINISHED_NAME = re.compile(r"\.idefics-[0-9a-f]{8}-[0-9a-f]{16}\.part")
# Windows makes locked bytes unreadable, so the locked byte is beyond the end of every file.
_LOCKED_BYTE = 1 << 40


def read_regular_file(path: Path, *, limit_bytes: int) -> bytes:
    """Return the content of the file *path*; never wait for a pipe or read a device.

    Args:
        path: File, or a link to one.
        limit_bytes: Largest size that is read.

    Raises:
        OSError: If the file cannot be read, is not a regular file, or is larger than the limit.
        ValueError: If no file can have this name.
    """
    # A pipe opens at once with O_NONBLOCK, so that its kind can be checked.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        content = file.read(limit_bytes + 1) if status.st_size <= limit_bytes else b""
    if max(status.st_size, len(content)) > limit_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def write_whole(target: Path, data: bytes, *, private: bool = False, durable: bool = True) -> None:
    """Write *data* to *target* atomically: the file has all of it, or stays as it was.

    Args:
        target: The file to write or replace.
        data: The whole content.
        private: Let only the owner read the file; otherwise the umask decides.
        durable: Wait until the file is on the disk, which takes some milliseconds.

    Raises:
        OSError: If the file cannot be written; *target* is unchanged.
    """
    # With O_EXCL and a random name, no link is followed and no file of the user is overwritten.
    name = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}{UNFINISHED}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(name, flags, 0o600 if private else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    if durable:
        sync_folder(target.parent)


def remove_unfinished(target: Path) -> None:
    """Remove the temporary files that killed programs left beside *target*.

    The caller must hold a lock: a temporary file of a running program would be removed, too.
    """
    for left in target.parent.glob(f"{_prefix(target)}*{UNFINISHED}"):
        left.unlink(missing_ok=True)


def is_unfinished(name: str) -> bool:
    """Whether *name* is that of a temporary file of `write_whole`."""
    return _UNFINISHED_NAME.fullmatch(name) is not None


def _prefix(target: Path) -> str:
    # A digest instead of the name: a name of 255 bytes leaves no room for a suffix.
    return f".idefics-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]}-"


def sync_folder(path: Path) -> None:
    """Write the names in the folder *path* to the disk, on systems that can do that."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> None:
    """Lock the open file *descriptor* against every other process; keep its position.

    Raises:
        BlockingIOError: If another process holds the lock.
        OSError: If the file system has no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
        os.lseek(descriptor, position, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lacks_locks(error: OSError) -> bool:
    """Whether *error* of `lock` means that the file system has no locks, as NFS without a lockd."""
    return error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def cannot_write(path: Path | None, error: OSError) -> IdeficsError:
    """Return the error for a failed write to *path*, or to stdout if *path* is None."""
    name = f"`{path}`" if path else "stdout"
    return IdeficsError(f"cannot write {name}: {error.strerror or error}")
