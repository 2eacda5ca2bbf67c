"""How many requests to ask a server at a time, found by measuring."""

from __future__ import annotations

import time
from collections.abc import Callable

_ANSWERS = 8
_GAIN = 1.1


class Width:
    """The number of requests at a time: 1, then twice as many as long as more are answered.

    A server that answers one after the other, or gets slower, keeps a small number. Half as many
    are asked after a server said that it has too much to do.

    Args:
        most: Largest number.
        clock: Returns the time in seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._rates: dict[int, float] = {}
        self._former: int | None = None
        self._is_settled = most == 1
        self.count = 1
        """Number of requests to ask at a time."""
        self._begin()

    def note_answer(self) -> None:
        """Count an answer, and choose the number anew after some of them."""
        if self._is_settled:
            return
        if self._skipped < self.count - 1:
            # The first answers were asked for with the former number.
            self._skipped += 1
            self._started = self._clock()
            return
        self._answers += 1
        if self._answers < max(_ANSWERS, self.count):
            return
        rate = self._answers / max(1e-9, self._clock() - self._started)
        self._rates[self.count] = rate
        former = self._former
        if former is not None and rate < self._rates[former] * _GAIN:
            self.count = former
            self._is_settled = True
        elif self.count == self._most:
            self._is_settled = True
        else:
            self._former, self.count = self.count, min(self.count * 2, self._most)
        self._begin()

    def note_overload(self) -> None:
        """Ask half as many: the server has too much to do."""
        self.count = max(1, self.count // 2)
        self._is_settled = True

    def _begin(self) -> None:
        self._answers = self._skipped = 0
        self._started = self._clock()
