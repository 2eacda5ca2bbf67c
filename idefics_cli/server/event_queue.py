"""The queue between the engine and the event loop: events of one request, taken some at a time."""

from __future__ import annotations

import asyncio
from threading import Lock

from idefics_cli.core.types import TokenChunk
from idefics_cli.engine.protocol import Outcome

# A client that reads so much slower than the model writes is given up.
_MOST_EVENTS = 1000
# Nobody reads text faster than 25 pieces per second. Each time the event loop is woken, the
# inference thread waits until the loop has written, because only one of them runs Python code at a
# time. With the built-in model, which writes 2,000 tokens per second, a wake-up for each token took
# 4 ms of each answer of 24 tokens.
_PAUSE_SECONDS = 0.04

Event = tuple[int, TokenChunk | Outcome]
"""The number of a reply, and what happened to it."""


class EventQueue:
    """Events of one request. `put` may run in any thread; the rest on the event loop.

    Args:
        pause_seconds: After events were taken, further text waits so long for more text. An outcome
            does not wait, and neither does the first text.
    """

    def __init__(self, *, pause_seconds: float = _PAUSE_SECONDS) -> None:
        self._pause_seconds = pause_seconds
        self._loop = asyncio.get_running_loop()
        self._lock = Lock()
        self._events: list[Event] = []
        self._has_outcome = False
        self._waiter: asyncio.Future[None] | None = None
        self._waits_for_text = False
        self._pause_ends = 0.0

    def put(self, event: Event) -> bool:
        """Add *event*; return False if it is text, and too many events wait."""
        is_outcome = not isinstance(event[1], TokenChunk)
        with self._lock:
            if not is_outcome and len(self._events) >= _MOST_EVENTS:
                return False
            self._events.append(event)
            self._has_outcome = self._has_outcome or is_outcome
            waiter = None
            if is_outcome or self._waits_for_text:
                waiter, self._waiter = self._waiter, None
        # The loop is closed if the server ended meanwhile.
        if waiter is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_wake, waiter)
        return True

    async def take(self, timeout_seconds: float | None = None) -> list[Event]:
        """Return all events since the last call; wait for the first of them.

        Returns:
            No event if none came in time.
        """
        pause = self._pause_ends - self._loop.time()
        if pause > 0:
            await self._wait(pause, for_text=False)
        await self._wait(timeout_seconds, for_text=True)
        with self._lock:
            events, self._events = self._events, []
            self._has_outcome = False
        if events:
            self._pause_ends = self._loop.time() + self._pause_seconds
        return events

    async def _wait(self, timeout_seconds: float | None, *, for_text: bool) -> None:
        """Wait for an outcome, or for any event, but not longer than *timeout_seconds*."""
        with self._lock:
            if self._has_outcome or (for_text and self._events):
                return
            waiter = self._waiter = self._loop.create_future()
            self._waits_for_text = for_text
        timer = None
        if timeout_seconds is not None:
            timer = self._loop.call_later(timeout_seconds, _wake, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            with self._lock:
                self._waiter = None


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
