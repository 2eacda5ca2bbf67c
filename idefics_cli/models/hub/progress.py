"""How far a download is, how fast it runs and how long it will take, in words."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from idefics_cli.core.units import format_duration, format_size

# The speed is that of the last seconds: a mean since the start would not show a stall.
_WINDOW_SECONDS = 10.0


class Transfer:
    """Describes one download; called from several threads, each with the bytes done so far.

    Args:
        total: Bytes to fetch.
        clock: Seconds.
    """

    def __init__(self, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque([(clock(), 0)])

    def describe(self, done: int) -> str:
        """Return as much as is known, as "downloading 0.3 of 1.0 GiB, 12 MiB/s, 59 s left"."""
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > _WINDOW_SECONDS:
            self._seen.popleft()
        text = f"downloading {format_size(done)} of {format_size(self._total)}"
        began, before = self._seen[0]
        if now - began < 1 or done <= before:
            return text
        speed = (done - before) / (now - began)
        left = max(0, self._total - done) / speed
        return f"{text}, {format_size(speed)}/s, {format_duration(left)} left"
