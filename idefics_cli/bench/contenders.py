"""Our side of a benchmark: the engine, timed from outside."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.bench.measure import Clock, Measurement
from idefics_cli.core.types import GenerationRequest
from idefics_cli.engine.protocol import Engine

# The engine's own clock starts later than ours: when the pictures are open and its thread has the
# requests. So the engine may report this share of our seconds at most.
_SLACK = 1.02


class Ours:
    """Answers with an engine.

    Args:
        engine: Engine, which the caller closes.
        clock: Seconds.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self._clock = clock

    def answer(self, requests: Sequence[GenerationRequest]) -> Measurement:
        """Open the pictures of *requests* and answer them; see `Contender.answer`.

        Raises:
            RuntimeError: If the engine reports more seconds than passed.
        """
        started = self._clock()
        done = self.engine.complete([self.engine.prepare(request) for request in requests])
        seconds = self._clock() - started
        # Rows in different batches of the engine have clocks of their own; the slowest counts.
        decode = max(completion.decode_seconds for completion in done)
        if decode > seconds * _SLACK:
            raise RuntimeError(f"the engine took {seconds:.3f} s and reports {decode:.3f} s")
        return Measurement(
            tokens=tuple(completion.token_ids for completion in done),
            texts=tuple(completion.text for completion in done),
            seconds=seconds,
            first_seconds=max(0.0, seconds - decode),
            prompt_tokens=max(completion.prompt_tokens for completion in done),
        )
