"""The history of the lines of a chat: a file for its owner only, or the memory of this run."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from idefics_cli.chat.store.pictures import make_private_folder

if TYPE_CHECKING:
    from prompt_toolkit.history import History

LONGEST_HISTORY = 2000


def open_history(path: Path | None) -> History:
    """Return the history in the file *path*; None keeps it for this run only.

    A chat continues without a file if the disk is full or read-only.
    """
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if path is None or not _can_keep(path):
        return InMemoryHistory()

    class Forgiving(FileHistory):
        def load_history_strings(self) -> Iterable[str]:
            with contextlib.suppress(OSError):
                return list(super().load_history_strings())
            return []

        def store_string(self, string: str) -> None:
            # A disk can be full later.
            with contextlib.suppress(OSError):
                super().store_string(string)

    return Forgiving(path)


def stored_lines(path: Path) -> list[str]:
    """Return the last lines of the history in the file *path*, the oldest first."""
    # The library returns the newest line first.
    return list(open_history(path).load_history_strings())[:LONGEST_HISTORY][::-1]


def _can_keep(path: Path) -> bool:
    try:
        make_private_folder(path.parent)
        # Other users of the machine must not read the questions. Opening a pipe would wait.
        flags = os.O_CREAT | os.O_RDWR | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            return stat.S_ISREG(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)
    except OSError:
        return False
