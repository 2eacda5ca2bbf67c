"""Admission: how many requests and bytes there may be at a time, before any of them is read."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from idefics_cli.core.closing import Closing
from idefics_cli.server.errors import ApiError, overloaded

_FIRST_SECONDS = 5.0  # what an answer takes, before any was measured
_MEASURED = 32


class Place(Closing):
    """The place of one admitted request; leaving the `with` block frees it."""

    def __init__(self, admission: RequestAdmission) -> None:
        self._admission = admission
        self.bytes = 0

    def add_bytes(self, count: int) -> None:
        """Count *count* more bytes of the body, before they are kept.

        Raises:
            ApiError: If all bodies together have too many bytes.
        """
        self._admission.add_bytes(count)
        self.bytes += count

    def close(self) -> None:
        """Free the place."""
        self._admission.leave(self)


class RequestAdmission:
    """Counts the requests that are read, wait or run. One thread owns it, that of the event loop.

    Args:
        slots: Number of requests that run at a time.
        queue: Number of further requests that may wait.
        most_bytes: Largest number of bytes of all bodies together.
        reject: Called with the reason of each refusal.
    """

    def __init__(
        self, *, slots: int, queue: int, most_bytes: int, reject: Callable[[str], None]
    ) -> None:
        self._slots = slots
        self._places = slots + queue
        self._most_bytes = most_bytes
        self._reject = reject
        self._seconds: deque[float] = deque(maxlen=_MEASURED)
        self.open_count = 0
        self.open_bytes = 0

    def admit(self) -> Place:
        """Return a place for a request.

        Raises:
            ApiError: If all places are taken.
        """
        if self.open_count >= self._places:
            self._reject("queue")
            raise self._full("the queue is full")
        self.open_count += 1
        return Place(self)

    def add_bytes(self, count: int) -> None:
        """See `Place.add_bytes`."""
        if self.open_bytes + count > self._most_bytes:
            self._reject("bytes")
            raise self._full("the bodies of all requests together are too large")
        self.open_bytes += count

    def leave(self, place: Place) -> None:
        """Free a place."""
        self.open_count -= 1
        self.open_bytes -= place.bytes

    def note_seconds(self, seconds: float) -> None:
        """Note how long an answer took."""
        self._seconds.append(seconds)

    def _full(self, message: str) -> ApiError:
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else _FIRST_SECONDS
        waiting = max(1, self.open_count - self._slots)
        return overloaded(message, "server_is_overloaded", math.ceil(waiting * mean / self._slots))
