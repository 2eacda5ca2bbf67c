"""The protocol of what makes captions, wherever it runs."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

from idefics_cli.core.types import CaptionRecord, GenerationRequest

# The key of a picture, and what is asked about it.
Item = tuple[str, GenerationRequest]


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded; captions follow."""


@dataclass(frozen=True, slots=True)
class BatchReduced:
    """The memory ran out; from now on *size* pictures are answered at a time."""

    size: int


ExecutorEvent = Ready | BatchReduced | CaptionRecord


class Executor(Protocol):
    """Makes captions in this process or elsewhere."""

    def caption(self, items: Iterable[Item]) -> Generator[ExecutorEvent, None, None]:
        """Yield one record for each of *items*, as they get done, in any order.

        A picture that fails becomes a record with `error`. *items* is read as needed, never as
        a whole. Closing the iterator stops the work and frees the model.

        Raises:
            IdeficsError: If no picture can be captioned at all, as when the model is missing.
        """
        ...
