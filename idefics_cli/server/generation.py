"""One request in the engine: its replies, and their events on the event loop."""

from __future__ import annotations

from dataclasses import replace
from threading import Lock

from idefics_cli.core.types import Completion, TokenChunk
from idefics_cli.engine.protocol import Engine, Handle, Listener, Outcome, Prepared
from idefics_cli.server.event_queue import Event, EventQueue
from idefics_cli.server.fields import SEEDS, RequestOptions


class SlowReaderError(Exception):
    """A client that does not read its stream."""


class Generation:
    """The replies to one request. `submit` may run in any thread; the rest on the event loop."""

    def __init__(self) -> None:
        self._events = EventQueue()
        self._lock = Lock()
        self._handles: list[Handle] = []
        self._is_too_slow = False
        self.is_cancelled = False
        """Whether nobody wants the replies any more."""

    @property
    def is_waiting(self) -> bool:
        """Whether no reply has started."""
        with self._lock:
            handles = list(self._handles)
        return all(handle.place is not None for handle in handles)

    def submit(self, engine: Engine, prepared: Prepared, options: RequestOptions) -> None:
        """Submit one request for each reply that *options* ask for.

        Raises:
            IdeficsError: As `Engine.submit`.
        """
        request = prepared.request
        constraint = request.constraint
        streams = options.streams and not (constraint and constraint.kind == "choice")
        for index in range(options.replies):
            sampling = options.sampling
            if sampling.seed is not None:
                sampling = replace(sampling, seed=(sampling.seed + index) % SEEDS)
            handle = engine.submit(
                replace(prepared, request=replace(request, sampling=sampling)),
                self._listener(index),
                urgency=options.urgency,
                streams=streams,
            )
            with self._lock:
                is_cancelled = self.is_cancelled
                if not is_cancelled:
                    self._handles.append(handle)
            if is_cancelled:
                handle.cancel()

    def cancel(self) -> None:
        """End all replies, those that are submitted later too."""
        with self._lock:
            self.is_cancelled = True
            # A handle keeps the request, which keeps its listener, which keeps this.
            handles, self._handles = self._handles, []
        for handle in handles:
            handle.cancel()

    async def next_events(self, timeout_seconds: float | None = None) -> list[Event]:
        """Return all events since the last call; wait for the first of them.

        Returns:
            No event if none came in time.

        Raises:
            SlowReaderError: If too many events wait.
        """
        events = await self._events.take(timeout_seconds)
        if self._is_too_slow:
            raise SlowReaderError
        return events

    async def outcomes(self, count: int) -> list[Completion]:
        """Wait for all *count* replies, and return them in order.

        Raises:
            Exception: If a reply failed.
        """
        found: dict[int, Completion] = {}
        while len(found) < count:
            for index, event in await self.next_events():
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Completion):
                    found[index] = event
        return [found[index] for index in sorted(found)]

    def _listener(self, index: int) -> Listener:
        def listen(event: TokenChunk | Outcome) -> None:
            if not self._events.put((index, event)):
                self._is_too_slow = True
                self.cancel()

        return listen
