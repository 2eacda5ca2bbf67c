"""Which requests to answer together, and what to do when a batch fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.core.types import Completion
from idefics_cli.engine import Engine, Prepared

_log = logging.getLogger(__name__)


def alike(waiting: Sequence[Prepared], count: int) -> list[int]:
    """Return the indices of up to *count* of *waiting* to answer together.

    The first is always among them, so that no picture waits for ever; then those whose pictures
    have its shapes, which are encoded in one go; then those whose pictures take as many image
    tokens. Others wait: their prompts would be padded to each other.

    Returns:
        Ascending indices.
    """
    first = waiting[0]
    near = [
        (prepared.shape_key != first.shape_key, index)
        for index, prepared in enumerate(waiting)
        if _tiles(prepared) == _tiles(first)
    ]
    return sorted(index for _, index in sorted(near)[:count])


def _tiles(prepared: Prepared) -> list[int]:
    # Every tile takes as many tokens, whatever its size.
    return [len(picture.tile_sizes) for picture in prepared.pictures]


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
