"""Loading of a model in the background, while the user types the first question."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Event

from idefics_cli.core.errors import IdeficsError, ModelError
from idefics_cli.core.text import abbreviated
from idefics_cli.core.threads import in_background
from idefics_cli.core.types import Progress
from idefics_cli.engine.protocol import Engine

_POLL_SECONDS = 0.05
_LEAVE_SECONDS = 1.0
Load = Callable[[Progress], Engine]
LoadPlan = Callable[[Callable[[str], None]], Load]
"""Plans how a model runs on this machine; passes warnings to its argument; returns the loader."""
Phase = Callable[[str], None]
"""Called with the current phase until the first token: "loading demo", "reading 2 pictures"."""


class Loading:
    """A model that is to be loaded, is loading, is loaded, or failed to load.

    Args:
        name: The name of the model, as the user typed it.
        plan: Plans how the model runs on this machine; called in the background.
        before_plan: Called in the background before *plan*; frees the memory of a former model.

    Attributes:
        name: The name of the model, as the user typed it.
        phase: The current phase, such as "loading demo 40%".
    """

    def __init__(
        self, name: str, plan: LoadPlan, *, before_plan: Callable[[], None] = lambda: None
    ) -> None:
        self.name = name
        self.phase = f"loading {name}"
        self._plan = plan
        self._before_plan = before_plan
        self._warnings: list[str] = []
        self._result: Future[Engine] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Start to load the model, unless that was started before."""
        if self._result is None:
            self._result = in_background(self._load, name=self.phase)

    def again(self) -> Loading:
        """Return this model; if it was closed, return a new `Loading` of the same model."""
        return Loading(self.name, self._plan) if self._is_closed else self

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded."""
        return self._result is not None and self._result.done() and self.error is None

    @property
    def error(self) -> IdeficsError | None:
        """The reason why the model failed to load; None if it is loaded, or still loading."""
        if self._result is None or not self._result.done():
            return None
        error = self._result.exception()
        return error if isinstance(error, IdeficsError) else None

    def take_warnings(self) -> list[str]:
        """Return the warnings of the plan and the engine that were not returned before."""
        warnings, self._warnings = self._warnings, []
        return warnings

    @property
    def engine(self) -> Engine:
        """The engine of the model; waits until it is loaded.

        Raises:
            IdeficsError: If the model cannot be loaded.
        """
        self.start()
        assert self._result is not None  # for mypy: `start` has set it
        return self._result.result()

    def wait(self, cancel: Event, phase: Phase) -> Engine | None:
        """Wait for the model; return None if *cancel* is set before it is loaded.

        Raises:
            IdeficsError: If it cannot be loaded.
        """
        self.start()
        assert self._result is not None  # as above
        reported = ""
        while not self._result.done() and not cancel.wait(_POLL_SECONDS):
            if reported != self.phase:
                reported = self.phase
                phase(reported)
        return self._result.result() if self._result.done() else None

    def close(self) -> None:
        """Free the memory of the model, as soon as it is loaded."""
        self._is_closed = True
        if self._result is not None:
            self._result.add_done_callback(_close)

    def leave(self) -> None:
        """Close the model at the end of the program, but wait only a moment for this.

        An answer that was abandoned goes on until its next token, which can take minutes.
        """
        self._is_closed = True
        if self._result is None or not self._result.done():
            return
        result = self._result
        closing = in_background(lambda: _close(result), name="closing the model")
        with suppress(TimeoutError):
            closing.result(_LEAVE_SECONDS)

    def _load(self) -> Engine:
        try:
            # The plan looks at the free memory, so the memory of a former model is freed first.
            self._before_plan()
            load = self._plan(self._warnings.append)
            return load(self._progress)
        except IdeficsError:
            raise
        except Exception as error:  # the edge of a worker: the chat continues with another model
            raise ModelError(
                f"cannot load `{self.name}`: {abbreviated(f'{type(error).__name__}: {error}', 300)}"
            ) from error

    def _progress(self, phase: str, share: float | None) -> None:
        if self.is_ready:
            self._warnings.append(phase)  # what an engine tells while it answers
            return
        self.phase = phase if share is None else f"{phase} {share:.0%}"


def _close(result: Future[Engine]) -> None:
    if result.exception() is None:
        result.result().close()
