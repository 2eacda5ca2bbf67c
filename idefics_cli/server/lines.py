"""Lines of the log, written by a thread of their own: a reader that stops must not stop answers."""

from __future__ import annotations

from collections.abc import Callable
from queue import Full, Queue
from threading import Thread
from typing import Self

from idefics_cli.core.closing import Closing

_MOST_WAITING = 10_000
_LAST_SECONDS = 2.0


class LogLines(Closing):
    """Writes lines in order, and drops new ones while too many wait.

    Args:
        write: Writes one line; it may block, for example on a pipe that nobody reads.
        most_waiting: Number of lines that may wait.
    """

    def __init__(self, write: Callable[[str], None], *, most_waiting: int = _MOST_WAITING) -> None:
        self._write = write
        self._waiting: Queue[str | None] = Queue(most_waiting)
        self._dropped = 0
        self._thread = Thread(target=self._run, name="log-lines", daemon=True)

    def tell(self, line: str) -> None:
        """Write *line* soon; safe in any thread, and never blocks."""
        try:
            self._waiting.put_nowait(line)
        except Full:
            self._dropped += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        """Write the waiting lines, and end the thread."""
        try:
            self._waiting.put_nowait(None)
        except Full:
            return  # nobody reads
        self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        while (line := self._waiting.get()) is not None:
            self._write(line)
            if self._dropped and self._waiting.empty():
                dropped, self._dropped = self._dropped, 0
                self._write(f"{dropped} lines are missing here: they could not be written in time")
