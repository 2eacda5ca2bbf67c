"""The history of the lines of a chat, in a file that only its owner can read or in memory."""

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
    """Return the history that is stored in the file *path*.

    If *path* is None or the file cannot be written, the history is kept in memory for this run
    only.
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
            # The disk may have become full since `_can_keep` opened the file. The chat must go on.
            with contextlib.suppress(OSError):
                super().store_string(string)

    return Forgiving(path)


def stored_lines(path: Path) -> list[str]:
    """Return the last lines of the history in the file *path*, the oldest first."""
    # prompt_toolkit returns the newest line first.
    return list(open_history(path).load_history_strings())[:LONGEST_HISTORY][::-1]


def _can_keep(path: Path) -> bool:
    try:
        make_private_folder(path.parent)
        # The mode 0o600 keeps the questions from other users of the machine. Without O_NONBLOCK,
        # opening a named pipe would wait for a writer.
        flags = os.O_CREAT | os.O_RDWR | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            return stat.S_ISREG(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)
    except OSError:
        return False
