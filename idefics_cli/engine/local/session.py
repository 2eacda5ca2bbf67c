"""A session: one thread adds requests in turn, and takes their outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event
from typing import Protocol

from idefics_cli.core.closing import Closing
from idefics_cli.core.types import TokenChunk
from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.serving.requests import Lane, OpenRequest
from idefics_cli.engine.local.serving.schedule import RequestSchedule
from idefics_cli.engine.protocol import Listener, Outcome, Prepared


class MakeRequest(Protocol):
    """Tokenizes the prompt of a request."""

    def __call__(
        self, prepared: Prepared, lane: Lane, listen: Listener, *, index: int
    ) -> OpenRequest:
        """Return the request.

        Raises:
            PromptError: If the model cannot take the prompt.
        """
        ...


class LocalSession(Closing):
    """Requests of one thread in a lane of their own; see `protocol.Session`.

    Args:
        slots: Maximum number of requests at a time.
        stop: Set when the work should stop.
        abandoned: Set by `close`; *stop* includes it.
        open_request: Tokenizes the prompt of a request.
        put: Adds requests to the engine.

    Attributes:
        lane: The lane of the requests.

    Raises:
        ValueError: If *slots* is less than 1.
    """

    def __init__(
        self,
        slots: int,
        *,
        stop: Flag,
        abandoned: Event,
        open_request: MakeRequest,
        put: Callable[[Sequence[OpenRequest]], None],
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots must be 1 or more, not {slots}")
        self._outbox = SimpleQueue[tuple[int, Outcome] | Exception | None]()
        self.lane = Lane(
            RequestSchedule(slots),
            "batch",
            stop,
            shares_seconds=True,
            on_stop=partial(self._outbox.put, None),
            on_failure=self._outbox.put,
        )
        self._abandoned = abandoned
        self._open_request = open_request
        self._put = put
        self._count = self._open_count = 0

    @property
    def slots(self) -> int:
        """Maximum number of requests at a time; see `protocol.Session`."""
        return self.lane.schedule.settled

    @property
    def room(self) -> int:
        """Number of requests that may be added now; see `protocol.Session`."""
        return max(0, self.slots - self._open_count)

    def put_requests(self, requests: Sequence[Prepared]) -> None:
        """Add *requests*; see `protocol.Session`."""
        opened = []
        for index, prepared in enumerate(requests, start=self._count):
            try:
                listen = partial(self._listen, index)
                opened.append(self._open_request(prepared, self.lane, listen, index=index))
            except Exception as error:
                self._outbox.put((index, error))
        self._count += len(requests)
        self._open_count += len(requests)
        # One call puts all requests, so that the inference thread finds them together and can batch
        # them.
        self._put(opened)

    def get_outcome(self, timeout_seconds: float | None = None) -> tuple[int, Outcome] | None:
        """Return the next outcome; see `protocol.Session`."""
        if not self._open_count and timeout_seconds is None:
            return None
        try:
            found = self._outbox.get(timeout_seconds != 0, timeout_seconds)
        except Empty:
            return None
        if isinstance(found, tuple):
            self._open_count -= 1
            return found
        self._open_count = 0
        if found is not None:
            raise found
        return None

    def close(self) -> None:
        """Cancel the open requests; see `protocol.Session`."""
        self._abandoned.set()

    def _listen(self, index: int, event: TokenChunk | Outcome) -> None:
        if not isinstance(event, TokenChunk):
            self._outbox.put((index, event))
