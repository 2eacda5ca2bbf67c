"""A session with a server: one thread adds requests in turn, and takes their outcomes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Event
from typing import Protocol

from idefics_cli.core.closing import Closing
from idefics_cli.core.errors import IdeficsError, NoServerError
from idefics_cli.core.types import TokenChunk
from idefics_cli.engine.protocol import Handle, Listener, Outcome, Prepared
from idefics_cli.engine.remote.patience import ServerHealth
from idefics_cli.engine.remote.width import Width

_POLL_SECONDS = 0.1


class SubmitBatch(Protocol):
    """Submits a request that is one of many."""

    def __call__(self, prepared: Prepared, listen: Listener) -> Handle:
        """Return at once; see `Engine.submit`."""
        ...


class RemoteSession(Closing):
    """Requests of one thread to a server; see `protocol.Session`.

    Args:
        slots: Maximum number of requests at a time.
        cancel: Set when the work should stop.
        submit: Submits a request.
        health: What is known about the server.
        tell: Called with notes about waits, in the thread of the session.

    Raises:
        ValueError: If *slots* is less than 1.
    """

    def __init__(
        self,
        slots: int,
        *,
        cancel: Event | None,
        submit: SubmitBatch,
        health: ServerHealth,
        tell: Callable[[str], None] = lambda note: None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots must be 1 or more, not {slots}")
        self._width = Width(slots)
        self._cancel = cancel or Event()
        self._submit = submit
        self._health = health
        self._tell = tell
        self._overloads = health.overloads
        self._count = 0
        self._open: dict[int, Handle | None] = {}
        self._outcomes: SimpleQueue[tuple[int, Outcome]] = SimpleQueue()

    @property
    def slots(self) -> int:
        """Number of requests to ask at a time now; see `Session.slots`."""
        return self._width.count

    @property
    def room(self) -> int:
        """Number of requests that may be added now."""
        return max(0, self.slots - len(self._open))

    def put_requests(self, requests: Sequence[Prepared]) -> None:
        """Add *requests*; see `Session.put_requests`."""
        for prepared in requests:
            number, self._count = self._count, self._count + 1
            self._open[number] = None
            try:
                self._open[number] = self._submit(prepared, self._listener(number))
            except IdeficsError as error:
                self._outcomes.put((number, error))

    def get_outcome(self, timeout_seconds: float | None = None) -> tuple[int, Outcome] | None:
        """Return the next outcome; see `Session.get_outcome`."""
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while self._open and not self._cancel.is_set():
            self._tell_notes()
            left = _POLL_SECONDS if end is None else max(0.0, end - time.monotonic())
            try:
                number, outcome = self._outcomes.get(timeout=min(left, _POLL_SECONDS))
            except Empty:
                if end is not None and time.monotonic() >= end:
                    return None
                continue
            del self._open[number]
            self._tell_notes()
            self._note(outcome)
            return number, outcome
        self.close()
        return None

    def close(self) -> None:
        """Cancel the open requests; idempotent."""
        for handle in self._open.values():
            if handle is not None:
                handle.cancel()
        self._open.clear()

    def _listener(self, number: int) -> Callable[[TokenChunk | Outcome], None]:
        def listen(event: TokenChunk | Outcome) -> None:
            if not isinstance(event, TokenChunk):
                self._outcomes.put((number, event))

        return listen

    def _tell_notes(self) -> None:
        for note in self._health.take_notes():
            self._tell(note)

    def _note(self, outcome: Outcome) -> None:
        if isinstance(outcome, NoServerError):
            # No request will be answered any more, so this is not a failure of one of them.
            self.close()
            raise outcome
        if self._health.overloads > self._overloads:
            self._overloads = self._health.overloads
            self._width.note_overload()
        self._width.note_answer()
