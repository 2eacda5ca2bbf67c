"""The protocol of executors, which make the captions of a run."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from threading import Event
from typing import Protocol, TypeAlias

from idefics_cli.caption.events import ExecutorEvent
from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.types import Progress
from idefics_cli.engine.protocol import EngineFactory

NamedFactory: TypeAlias = tuple[str, EngineFactory]
"""The name of a worker, such as "cuda:1", and what makes its engine."""


class Executor(Protocol):
    """Makes captions in this process or elsewhere."""

    def caption(
        self,
        pictures: Iterable[CaptionItem | None],
        stop: Event,
        *,
        progress: Progress | None = None,
    ) -> Generator[ExecutorEvent, None, None]:
        """Yield one record for each of *pictures* as soon as it is done, in any order.

        A picture that fails becomes a record with `error`. Closing the iterator stops the work
        and frees the model.

        Args:
            pictures: Read as needed, never as a whole. None means that no picture may begin now:
                a record must come first, or the next picture is not known yet.
            stop: When it is set, the executor finishes the current batch and begins no other.
            progress: Called while the model loads, perhaps in another thread.

        Raises:
            IdeficsError: If no picture can be captioned, for example because the model is missing.
        """
        ...
