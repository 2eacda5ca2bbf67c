"""How long a client waits for a server, and how often it asks again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Lock

from idefics_cli.core.errors import NoServerError
from idefics_cli.core.units import format_duration
from idefics_cli.engine.remote.faults import ServerFault

# While a server is away, a note says so each time that this many seconds have passed.
_NOTE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, and how often to try.

    Attributes:
        tries: Largest number of tries of one request that the server breaks off.
        first_wait_seconds: Wait after the first try; each later wait is twice as long.
        most_wait_seconds: Longest wait, unless the server asks for a longer one.
        gone_seconds: After so long without any answer, the server is gone.
        silence_seconds: Longest wait for more of an answer that has begun.
    """

    tries: int = 6
    first_wait_seconds: float = 0.5
    most_wait_seconds: float = 30.0
    gone_seconds: float = 120.0
    silence_seconds: float = 60.0


class ServerHealth:
    """What all requests to one server know: when it answered, and until when to leave it alone.

    Args:
        patience: How long to wait.
        clock: Returns the time in seconds.
    """

    def __init__(self, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience = patience
        self._clock = clock
        self._lock = Lock()
        self._pause_end = 0.0
        self._failing_since: float | None = None
        self._told_at: float | None = None
        self._notes: SimpleQueue[str] = SimpleQueue()
        self._changes: SimpleQueue[str] = SimpleQueue()
        self._noted: set[str] = set()
        self.overloads = 0
        """Number of times that the server said that it has too much to do."""

    def wait_for_turn(self, cancelled: Event) -> bool:
        """Wait as long as all requests are paused; return False if *cancelled* was set."""
        while (seconds := self._pause_end - self._clock()) > 0:
            if cancelled.wait(min(seconds, 1.0)):
                return False
        return not cancelled.is_set()

    def note_answer(self) -> None:
        """Note that the server has answered."""
        with self._lock:
            self._failing_since = None

    def note_change(self, text: str) -> None:
        """Tell the user once that requests are changed, as *text* says."""
        with self._lock:
            if text not in self._noted:
                self._noted.add(text)
                self._changes.put(text)

    def take_notes(self) -> Iterator[str]:
        """Yield what the user should know about waits and changed requests; each note once."""
        yield from self.take_changes()
        while not self._notes.empty():
            yield self._notes.get()

    def take_changes(self) -> Iterator[str]:
        """Yield what the user should know about changed requests; each note once."""
        while not self._changes.empty():
            yield self._changes.get()

    def note_failure(self, fault: ServerFault, tries: int) -> float:
        """Note that the server could not answer; return how long to wait before the next try.

        Other requests are paused, too, if it answers none of them, or asks for a wait.

        Raises:
            NoServerError: If it has answered nothing for too long.
        """
        patience, now = self.patience, self._clock()
        backoff = min(patience.most_wait_seconds, patience.first_wait_seconds * 2 ** (tries - 1))
        seconds = fault.wait_seconds
        if seconds is None:
            seconds = backoff * random.uniform(0.75, 1.25)
        with self._lock:
            if not fault.is_unavailable:
                return seconds
            if self._pause_end <= now and not isinstance(fault.error, NoServerError):
                self.overloads += 1
            if self._told_at is None or now - self._told_at >= _NOTE_SECONDS:
                self._told_at = now
                self._notes.put(f"{fault.error}; waiting {format_duration(seconds)}")
            self._pause_end = max(self._pause_end, now + seconds)
            if fault.wait_seconds is not None:
                # The server is there, and says when to come back.
                self._failing_since = None
                return seconds
            if self._failing_since is None:
                self._failing_since = now
            silent = now - self._failing_since
            if silent > patience.gone_seconds:
                raise NoServerError(
                    f"{fault.error}; no answer for {format_duration(silent)}",
                    hint="once the server is back, the same command continues",
                ) from fault.error
        return seconds
