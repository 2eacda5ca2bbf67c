"""A model that is loaded in the background, while the first text is typed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Event

from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.threads import in_background
from idefics_cli.core.types import Progress
from idefics_cli.engine.protocol import Engine

_POLL_SECONDS = 0.05
Load = Callable[[Progress], Engine]
LoadPlan = Callable[[Callable[[str], None]], Load]
"""Given what takes warnings, decides how a model runs here, and returns what loads it."""
Phase = Callable[[str], None]
"""Told what goes on until the first token: "loading demo", "reading 2 images", "thinking"."""


class Loading:
    """A model that is not loaded yet, is being loaded, or is there, or cannot be.

    Args:
        name: What the user calls it.
        plan: Decides how it runs here; called in the background.
        before_load: Called in the background when the plan is made, before any weight is read.
    """

    def __init__(
        self, name: str, plan: LoadPlan, *, before_load: Callable[[], None] = lambda: None
    ) -> None:
        self.name = name
        self.phase = f"loading {name}"
        self._plan = plan
        self._before_load = before_load
        self._warnings: list[str] = []
        self._result: Future[Engine] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Begin to load it, if that has not begun."""
        if self._result is None:
            self._result = in_background(self._load, name=self.phase)

    def again(self) -> Loading:
        """Return the same model, to be loaded anew if it was closed."""
        return Loading(self.name, self._plan) if self._is_closed else self

    @property
    def is_ready(self) -> bool:
        """Whether it answers at once."""
        return self._result is not None and self._result.done() and self.error is None

    @property
    def error(self) -> IdeficsError | None:
        """Why it cannot be loaded; None if it can, or while that is not known."""
        if self._result is None or not self._result.done():
            return None
        error = self._result.exception()
        return error if isinstance(error, IdeficsError) else None

    def take_warnings(self) -> list[str]:
        """Return what there is to tell of how it runs, once."""
        warnings, self._warnings = self._warnings, []
        return warnings

    @property
    def engine(self) -> Engine:
        """The model, waited for.

        Raises:
            IdeficsError: If it cannot be loaded.
        """
        self.start()
        assert self._result is not None  # for mypy: `start` has set it
        return self._result.result()

    def wait(self, cancel: Event, phase: Phase) -> Engine | None:
        """Wait for the model; None if *cancel* is set before it is there.

        Raises:
            IdeficsError: If it cannot be loaded.
        """
        self.start()
        assert self._result is not None  # as above
        told = ""
        while not self._result.done() and not cancel.wait(_POLL_SECONDS):
            if told != self.phase:
                told = self.phase
                phase(told)
        return self._result.result() if self._result.done() else None

    def close(self) -> None:
        """Free its memory, as soon as it is loaded."""
        self._is_closed = True
        if self._result is not None:
            self._result.add_done_callback(_close)

    def _load(self) -> Engine:
        load = self._plan(self._warnings.append)
        self._before_load()
        return load(self._progress)

    def _progress(self, phase: str, share: float | None) -> None:
        self.phase = phase if share is None else f"{phase} {share:.0%}"


def _close(result: Future[Engine]) -> None:
    if result.exception() is None:
        result.result().close()
