"""Our side of a benchmark: the engine, whose calls are timed from outside."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.bench.measure import Clock, Measurement
from idefics_cli.core.types import GenerationRequest
from idefics_cli.engine.protocol import Engine

# The engine reports its own decode time. This time starts only when the pictures are open and the
# engine's thread has the requests, so it must be shorter than the time measured from outside. Two
# percent are allowed for the error of the clocks.
_SLACK = 1.02


class Ours:
    """The contender that answers with an engine.

    Args:
        engine: The engine, which the caller closes.
        clock: Returns seconds.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self._clock = clock

    def answer(self, requests: Sequence[GenerationRequest]) -> Measurement:
        """Open the pictures of *requests* and answer them; see `Contender.answer`.

        Raises:
            RuntimeError: If the engine reports more seconds than have passed.
        """
        started = self._clock()
        done = self.engine.complete([self.engine.prepare(request) for request in requests])
        seconds = self._clock() - started
        # The engine may answer the requests in several batches, and times each batch for itself.
        # The longest of these times is taken.
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
