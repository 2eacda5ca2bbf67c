"""A request that a test has submitted to an engine, with its events."""

from __future__ import annotations

from queue import SimpleQueue

from idefics_cli.core.types import Completion, TokenChunk
from idefics_cli.engine.protocol import Engine, Handle, Outcome, Prepared, Urgency


class Asked:
    """A request that was submitted, and its events.

    Attributes:
        chunks: The pieces of the reply so far.
        handle: The handle of the request.
    """

    def __init__(
        self,
        engine: Engine,
        prepared: Prepared,
        *,
        urgency: Urgency = "interactive",
        streams: bool = True,
    ) -> None:
        self._events: SimpleQueue[TokenChunk | Outcome] = SimpleQueue()
        self.chunks: list[TokenChunk] = []
        self.handle: Handle = engine.submit(
            prepared, self._events.put, urgency=urgency, streams=streams
        )

    def wait_for_text(self) -> None:
        """Wait until the reply has begun."""
        event = self._events.get(timeout=60)
        assert isinstance(event, TokenChunk)
        self.chunks.append(event)

    def outcome(self) -> Outcome:
        """Wait for the outcome, which comes once and last."""
        while isinstance(event := self._events.get(timeout=60), TokenChunk):
            self.chunks.append(event)
        assert self._events.empty()
        return event

    def completion(self) -> Completion:
        """Wait for the reply; its pieces must join to its text."""
        outcome = self.outcome()
        assert isinstance(outcome, Completion), outcome
        assert not self.chunks or "".join(c.text for c in self.chunks) == outcome.text
        return outcome
