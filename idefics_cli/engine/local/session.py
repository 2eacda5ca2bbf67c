"""A session: one thread adds requests, and the inference thread answers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Event
from types import TracebackType
from typing import Self

from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.scheduling import RequestSchedule, Ticket
from idefics_cli.engine.local.serving import Inbox
from idefics_cli.engine.local.worker import result_of
from idefics_cli.engine.protocol import Outcome, Prepared

OnOutcome = Callable[[tuple[int, Outcome]], None]
StartServing = Callable[[Inbox, RequestSchedule, Flag, OnOutcome], "Future[None]"]
# While the inference thread waits for requests, it checks after so many seconds if it should stop.
_POLL_SECONDS = 0.1


class LocalSession:
    """Requests of one thread that the inference thread answers; see `protocol.Session`.

    Args:
        slots: Maximum number of requests at a time.
        stop: Set when the work should stop.
        abandoned: Set by `close`; *stop* includes it.
        start: Starts a server in the inference thread.
    """

    def __init__(self, slots: int, *, stop: Flag, abandoned: Event, start: StartServing) -> None:
        self._schedule = RequestSchedule(slots)
        self._abandoned = abandoned
        self._outbox = SimpleQueue[tuple[int, Outcome] | None]()
        self._inbox = _QueueInbox(stop)
        self._job = start(self._inbox, self._schedule, stop, self._outbox.put)
        # The end mark comes from a callback, because an engine that closes drops jobs that have
        # not started.
        self._job.add_done_callback(lambda _: self._outbox.put(None))
        self._count = self._open_count = 0

    @property
    def slots(self) -> int:
        """Maximum number of requests at a time; see `protocol.Session`."""
        return self._schedule.settled

    @property
    def room(self) -> int:
        """Number of requests that may be added now; see `protocol.Session`."""
        return max(0, self.slots - self._open_count)

    def put_requests(self, requests: Sequence[Prepared]) -> None:
        """Add *requests*; see `protocol.Session`."""
        # One item of the queue for all, so that the inference thread can start them together.
        self._inbox.put_tickets([Ticket(i, p) for i, p in enumerate(requests, start=self._count)])
        self._count += len(requests)
        self._open_count += len(requests)

    def get_outcome(self, timeout_seconds: float | None = None) -> tuple[int, Outcome] | None:
        """Return the next outcome; see `protocol.Session`."""
        if not self._open_count and timeout_seconds is None:
            return None
        try:
            found = self._outbox.get(timeout_seconds != 0, timeout_seconds)
        except Empty:
            return None
        if found is None:
            self._open_count = 0
            result_of(self._job)
            return None
        self._open_count -= 1
        return found

    def close(self) -> None:
        """Cancel the open requests; see `protocol.Session`."""
        self._abandoned.set()
        self._inbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _QueueInbox:
    """Hands requests from one thread to another."""

    def __init__(self, stop: Flag) -> None:
        self._queue: SimpleQueue[list[Ticket] | None] = SimpleQueue()
        self._stop = stop
        self._is_closed = False

    def put_tickets(self, tickets: list[Ticket]) -> None:
        self._queue.put(tickets)

    def close(self) -> None:
        """Announce that no more requests will come."""
        self._queue.put(None)

    def take_tickets(self, *, waits: bool) -> list[Ticket]:
        """Return the new requests; see `serving.Inbox`."""
        taken: list[Ticket] = []
        while not self._is_closed:
            is_waiting = waits and not taken and not self._stop.is_set()
            try:
                tickets = self._queue.get(is_waiting, timeout=_POLL_SECONDS)
            except Empty:
                if is_waiting:
                    continue
                break
            if tickets is None:
                self._is_closed = True
            else:
                taken += tickets
        return taken
