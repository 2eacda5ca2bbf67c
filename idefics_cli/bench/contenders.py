"""Ours as a contender: the engine, called from outside."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.bench.measure import Clock, Measurement
from idefics_cli.core.types import GenerationRequest
from idefics_cli.engine.protocol import Engine

# The engine's own clock begins after the pictures are open and its thread has the work.
_SLACK = 1.02


class Ours:
    """Answers with an engine.

    Args:
        engine: The caller closes it.
        clock: Seconds.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self._clock = clock

    def answer(self, requests: Sequence[GenerationRequest]) -> Measurement:
        """Open the pictures of *requests* and answer them; see `Contender.answer`.

        Raises:
            RuntimeError: If the engine claims to have taken longer than it did.
        """
        started = self._clock()
        done = self.engine.complete([self.engine.prepare(request) for request in requests])
        seconds = self._clock() - started
        # Rows that the engine took apart have clocks of their own; the slowest counts.
        decode = max(completion.decode_seconds for completion in done)
        if decode > seconds * _SLACK:
            raise RuntimeError(f"the engine took {seconds:.3f} s and says {decode:.3f} s")
        return Measurement(
            tokens=tuple(completion.token_ids for completion in done),
            texts=tuple(completion.text for completion in done),
            seconds=seconds,
            first_seconds=max(0.0, seconds - decode),
            prompt_tokens=max(completion.prompt_tokens for completion in done),
        )
