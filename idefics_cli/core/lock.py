"""An advisory lock on an open file, which the system lifts when its owner ends."""

from __future__ import annotations

import os
import sys

# Windows locks bytes, and nobody can read those: not bytes that hold anything.
_LOCKED_BYTE = 1 << 40


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
