"""Descriptions of the progress of a download: bytes done, speed and time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from idefics_cli.core.units import format_duration, format_size

# The speed is the mean over this many seconds. A mean since the start would hide a stall.
_WINDOW_SECONDS = 10.0


class Transfer:
    """The progress of one download; several threads may call it.

    Args:
        total_bytes: Size of the download.
        clock: Returns the time in seconds.
    """

    def __init__(self, total_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._total_bytes = total_bytes
        self._clock = clock
        self._points: deque[tuple[float, int]] = deque([(clock(), 0)])

    def describe(self, done_bytes: int) -> str:
        """Return a text such as "downloading 0.3 of 1.0 GiB, 12 MiB/s, 59 s left".

        The speed and the time are left out while they are unknown.

        Args:
            done_bytes: Bytes that have arrived so far.
        """
        now = self._clock()
        self._points.append((now, done_bytes))
        while len(self._points) > 2 and now - self._points[1][0] > _WINDOW_SECONDS:
            self._points.popleft()
        text = f"downloading {format_size(done_bytes)} of {format_size(self._total_bytes)}"
        start, start_bytes = self._points[0]
        if now - start < 1 or done_bytes <= start_bytes:
            return text
        speed = (done_bytes - start_bytes) / (now - start)
        seconds = max(0, self._total_bytes - done_bytes) / speed
        return f"{text}, {format_size(speed)}/s, {format_duration(seconds)} left"
