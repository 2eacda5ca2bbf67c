"""The model that answers in a chat, and the change to another one."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import TypeAlias

from idefics_cli.chat.budget import TokenBudget
from idefics_cli.chat.loading import Loading, LoadPlan, Phase
from idefics_cli.engine.protocol import Engine, OpenImage

FindModel: TypeAlias = Callable[[str], tuple[str, LoadPlan]]
"""Looks up a model by the name that the user typed; returns its full name, and its plan."""


class ModelSwitch:
    """The model that answers. Another model can replace it while the conversation goes on.

    Args:
        loading: The first model, which may still be loading.
        find_model: Looks up another model.
        open_image: Opens a picture of an earlier turn.
    """

    def __init__(self, loading: Loading, find_model: FindModel, open_image: OpenImage) -> None:
        self.loading = loading
        self._former: Loading | None = None
        self._find_model = find_model
        self._open_image = open_image
        self._budget: TokenBudget | None = None

    @property
    def name(self) -> str:
        """The name of the model, as the user typed it."""
        return self.loading.name

    @property
    def engine(self) -> Engine:
        """The engine of the model; waits for it.

        Raises:
            IdeficsError: If it cannot be loaded.
        """
        return self.loading.engine

    @property
    def budget(self) -> TokenBudget | None:
        """The token counts for the model; None until it is loaded."""
        return self._budget_of(self.loading.engine) if self.loading.is_ready else None

    def wait(self, cancel: Event, phase: Phase) -> TokenBudget | None:
        """Wait for the model; return None if *cancel* is set before it is loaded.

        Raises:
            IdeficsError: If it cannot be loaded.
        """
        engine = self.loading.wait(cancel, phase)
        if engine is None:
            return None
        self._former = None
        return self._budget_of(engine)

    def switch(self, name: str) -> None:
        """Load the model *name* in the background; it answers from now on.

        If it cannot be loaded, `go_back` brings the former model back.

        Raises:
            IdeficsError: If it is unknown or does not chat; the former model stays.
        """
        (name, plan), former = self._find_model(name), self._former or self.loading
        if former is not self.loading:
            self.loading.close()
        # The former model is closed before the plan, because two large models may not fit into the
        # memory at the same time.
        self.loading = Loading(name, plan, before_plan=former.close)
        self._former = former
        self.loading.start()

    def go_back(self) -> bool:
        """Bring the former model back, and return whether there is one."""
        if self._former is None:
            return False
        self.loading, self._former = self._former.again(), None
        self.loading.start()
        return True

    def leave(self) -> None:
        """Close the model at the end of the program; see `Loading.leave`."""
        self.loading.leave()

    def _budget_of(self, engine: Engine) -> TokenBudget:
        if self._budget is None or self._budget.engine is not engine:
            self._budget = TokenBudget(engine, self._open_image)
        return self._budget
