"""Which requests to answer together, and what to do when a batch fails."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.core.types import Completion
from idefics_cli.engine import Engine, Prepared

# Pictures of a batch are padded to its widest and highest. Encoders scale a picture to a fixed
# longest side, so within this ratio of shapes less than a fifth of the pixels is padding.
_LARGEST_RATIO = 1.25

_log = logging.getLogger(__name__)


def alike(waiting: Sequence[Prepared], count: int) -> list[int]:
    """Return the indices of up to *count* of *waiting* to answer together.

    The first is always among them, so that no picture waits for ever; the others are those
    whose pictures have the shape most like its own, as many and not far from it.

    Returns:
        Ascending indices.
    """
    first = _shape(waiting[0])
    near = []
    for index, prepared in enumerate(waiting):
        shape = _shape(prepared)
        distance = _distance(first, shape)
        if distance is not None:
            near.append((distance, index))
    return sorted(index for _, index in sorted(near)[:count])


def _shape(prepared: Prepared) -> list[tuple[float, float]]:
    # The aspect ratio counts first; among equals, the size.
    return [(math.log(w / h), math.log(w * h)) for w, h in (i.size for i in prepared.images)]


def _distance(
    one: list[tuple[float, float]], other: list[tuple[float, float]]
) -> tuple[float, float] | None:
    """Return how unlike two shapes are, or None if they should not be padded to each other."""
    if len(one) != len(other):
        return None
    ratio = max((abs(a[0] - b[0]) for a, b in zip(one, other, strict=True)), default=0.0)
    size = max((abs(a[1] - b[1]) for a, b in zip(one, other, strict=True)), default=0.0)
    return (ratio, size) if ratio <= math.log(_LARGEST_RATIO) else None


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion, and its share of the seconds that its batch took."""

    completion: Completion
    seconds: float


class Batcher:
    """Answers batches so that one bad request, or too little memory, fails as little as possible.

    Args:
        engine: What answers; the caller closes it.
        size: Most requests at a time.

    Attributes:
        size: As given, or less since the memory ran out.
    """

    def __init__(self, engine: Engine, size: int) -> None:
        self._engine = engine
        self.size = size

    def answer(
        self, batch: Sequence[Prepared], *, cancel: Event | None = None
    ) -> list[Answer | Exception]:
        """Return the completion of each request of *batch*, or what made it fail alone.

        When the memory runs out the batch is halved, down to one at a time, and what worked is
        kept for later batches. After any other error its requests are tried one by one.
        """
        answers: list[Answer | Exception] = []
        size_before = self.size
        while rest := batch[len(answers) :]:
            part = rest[: self.size]
            try:
                completions = self._engine.complete(part, cancel=cancel)
                answers += [Answer(c, _seconds(c) / len(part)) for c in completions]
            except MemoryLimitError as error:
                if len(part) > 1:
                    self.size = len(part) // 2
                else:
                    answers.append(error)
                    # It does not fit at all, so it says nothing about the others.
                    self.size = size_before
            except Exception as error:
                _log.debug("a batch of %d failed", len(part), exc_info=True)
                answers += [error] if len(part) == 1 else self._one_by_one(part, cancel)
        return answers

    def _one_by_one(
        self, batch: Sequence[Prepared], cancel: Event | None
    ) -> list[Answer | Exception]:
        return [answer for prepared in batch for answer in self.answer([prepared], cancel=cancel)]


def _seconds(completion: Completion) -> float:
    return completion.prefill_seconds + completion.decode_seconds
