"""The pictures that an executor has not taken yet."""

from __future__ import annotations

from collections.abc import Iterable

from idefics_cli.caption.item import CaptionItem


class Supply:
    """The pictures of a run, one by one.

    Args:
        pictures: As in `Executor.caption`.

    Attributes:
        is_exhausted: Whether there are no more pictures.
    """

    def __init__(self, pictures: Iterable[CaptionItem | None]) -> None:
        self._pictures = iter(pictures)
        self.is_exhausted = False

    def next_picture(self) -> CaptionItem | None:
        """Return the next picture; None if no picture may begin now, or there are no more."""
        if self.is_exhausted:
            return None
        try:
            return next(self._pictures)
        except StopIteration:
            self.is_exhausted = True
            return None
