"""Files that are written whole or not at all, and locks on open files."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from pathlib import Path

from idefics_cli.core.errors import IdeficsError

UNFINISHED = ".part"
# Windows makes locked bytes unreadable, so the lock lies beyond every byte that holds data.
_LOCKED_BYTE = 1 << 40


def write_whole(target: Path, data: bytes, *, private: bool = False) -> None:
    """Write *data* to *target*: all of it, or nothing.

    Args:
        target: Replaced if it exists.
        data: The whole content.
        private: Only the owner may read the file; otherwise the umask decides.

    Raises:
        OSError: If it cannot be written; *target* is then as it was.
    """
    # O_EXCL and a random name: neither a link nor a file of the user is written through.
    name = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}{UNFINISHED}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(name, flags, 0o600 if private else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    sync_folder(target.parent)


def remove_unfinished(target: Path) -> None:
    """Remove what killed programs left while they wrote *target*; nobody else may write it now."""
    for left in target.parent.glob(f"{_prefix(target)}*{UNFINISHED}"):
        left.unlink(missing_ok=True)


def _prefix(target: Path) -> str:
    # Of a digest: a name of 255 bytes leaves no room for more.
    return f".idefics-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]}-"


def sync_folder(path: Path) -> None:
    """Bring the names in the folder *path* to the disk, where a system can do that."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> None:
    """Lock the open file *descriptor* against every other process; its position stays.

    Raises:
        BlockingIOError: If another process has it locked; PermissionError on Windows.
        OSError: If the file system has no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, position, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def cannot_write(path: Path | None, error: OSError) -> IdeficsError:
    """Return what to raise when *path*, or stdout, takes no more."""
    name = f"`{path}`" if path else "stdout"
    return IdeficsError(f"cannot write {name}: {error.strerror or error}")
