"""Our side of a benchmark: the engine, whose calls are timed from outside."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.bench.measure import Clock, Measurement
from idefics_cli.core.types import GenerationRequest
from idefics_cli.engine.protocol import Engine

# The engine reports its own decode time, which starts only after the pictures are open. So the
# decode time must be shorter than the total time that is measured here. The factor allows for an
# error of 2 % between the clocks.
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
