"""A lock on a file that lets one process write at a time.

The operating system releases the lock when the process ends.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from idefics_cli.core.errors import SessionError
from idefics_cli.core.files import lock

_POLL_SECONDS = 0.02


class HeldElsewhereError(SessionError):
    """Another process holds the lock."""


class FileLock:
    """A lock on the file at *path*, held until `release`. The file contains our process id.

    Args:
        path: The lock file, in a folder that exists; `release` removes it.
        wait_seconds: How long to wait if another process holds the lock.
        acquire: Locks an open file; see `core.files.lock`.

    Raises:
        HeldElsewhereError: If another process holds the lock; the message names the process.
        SessionError: If the file system has no locks.
    """

    def __init__(
        self,
        path: Path,
        *,
        wait_seconds: float = 0.0,
        acquire: Callable[[int], None] = lock,
    ) -> None:
        self._path = path
        self._acquire = acquire
        deadline = time.monotonic() + wait_seconds
        while (descriptor := self._try()) is None:
            if time.monotonic() >= deadline:
                raise HeldElsewhereError(
                    f"`{path}` is held by {holder(path)}", hint="wait until it is done, or end it"
                )
            time.sleep(_POLL_SECONDS)
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Release the lock; idempotent."""
        if self._descriptor is None:
            return
        # The file is removed before the lock is released, so that nobody locks a file that is about
        # to be removed. Windows cannot remove an open file: the file stays, and does no harm.
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _try(self) -> int | None:
        """Return the descriptor of the locked file; None if another process holds it."""
        try:
            # A link is not followed: it would lead to a file that is not ours, and the next lines
            # empty the file that was opened.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise _unlockable(self._path, error) from error
        try:
            self._acquire(descriptor)
            # The former holder may have removed the file after we opened it. Our lock would then
            # have no effect.
            if not _is_same_file(descriptor, self._path):
                os.close(descriptor)
                return None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise _unlockable(self._path, error) from error
        return descriptor


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def holder(path: Path) -> str:
    """Return the holder of the lock at *path*, in words for a message."""
    try:
        text = path.read_bytes()[:20].decode("ascii", "replace").strip()
    except OSError:
        text = ""
    return f"process {text}" if text.isdigit() else "another process"


def _unlockable(path: Path, error: OSError) -> SessionError:
    return SessionError(
        f"cannot lock `{path}`: {(error.strerror or str(error)).lower()}",
        hint="`--no-save` chats without saving the session",
    )
