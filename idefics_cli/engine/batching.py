"""Which requests to answer together, and what to do when a batch fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """A completion, and what it took.

    Attributes:
        completion: What the model said.
        seconds: Its share of the time of its batch.
        note: What was done to fit it into memory; empty for most.
    """

    completion: Completion
    seconds: float
    note: str = ""


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
        kept for later batches; one that does not fit alone is tried without its tiles. After any
        other error the requests of the batch are tried one by one.
        """
        answers: list[Answer | Exception] = []
        size_before = self.size
        note = ""
        while rest := batch[len(answers) :]:
            part = rest[: self.size]
            try:
                answers += self._complete(part, cancel, note)
            except MemoryLimitError as error:
                if len(part) > 1:
                    self.size = len(part) // 2
                    note = f"answered {_at_a_time(self.size)}: out of memory"
                else:
                    answers.append(self._without_tiles(part[0], cancel, error))
                    # It does not fit as it is, so it says nothing about the others.
                    self.size = size_before
            except Exception as error:
                _log.debug("a batch of %d failed", len(part), exc_info=True)
                answers += [error] if len(part) == 1 else self._one_by_one(part, cancel)
        return answers

    def _complete(
        self, batch: Sequence[Prepared], cancel: Event | None, note: str
    ) -> list[Answer | Exception]:
        completions = self._engine.complete(batch, cancel=cancel)
        return [Answer(c, _seconds(c) / len(batch), note) for c in completions]

    def _without_tiles(
        self, prepared: Prepared, cancel: Event | None, error: MemoryLimitError
    ) -> Answer | Exception:
        pictures = tuple(picture.without_tiles() for picture in prepared.pictures)
        if pictures == prepared.pictures:
            return error
        smaller = replace(prepared, pictures=pictures)
        try:
            return self._complete([smaller], cancel, "answered without tiles: out of memory")[0]
        except Exception as failure:
            return failure

    def _one_by_one(
        self, batch: Sequence[Prepared], cancel: Event | None
    ) -> list[Answer | Exception]:
        return [answer for prepared in batch for answer in self.answer([prepared], cancel=cancel)]


def _at_a_time(size: int) -> str:
    return "alone" if size == 1 else f"{size} at a time"


def _seconds(completion: Completion) -> float:
    return completion.prefill_seconds + completion.decode_seconds
