"""The protocol of what makes captions, wherever it runs."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from threading import Event
from typing import Protocol

from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.types import CaptionRecord


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded; captions follow.

    Attributes:
        revision: The commit of the weights, when it is known.
    """

    revision: str | None = None


@dataclass(frozen=True, slots=True)
class BatchReduced:
    """The memory ran out; from now on *size* pictures are answered at a time."""

    size: int


ExecutorEvent = Ready | BatchReduced | CaptionRecord


class Executor(Protocol):
    """Makes captions in this process or elsewhere."""

    def caption(
        self, pictures: Iterable[CaptionItem], stop: Event
    ) -> Generator[ExecutorEvent, None, None]:
        """Yield one record for each of *pictures*, as they get done, in any order.

        A picture that fails becomes a record with `error`. *pictures* is read as needed, never
        as a whole. Once *stop* is set, only what the model is at is finished. Closing the
        iterator stops the work and frees the model.

        Raises:
            IdeficsError: If no picture can be captioned at all, as when the model is missing.
        """
        ...
