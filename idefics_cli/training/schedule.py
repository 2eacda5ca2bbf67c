"""How training goes from its first step to its last."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Phase:
    """What holds for one step.

    Attributes:
        learning_rate: Of all parameters.
        auxiliary_weight: Of the auxiliary losses against that of the language.
        batch_size: Conversations, over all processes together.
        is_vision_only: Whether only the auxiliary losses are learned.
    """

    learning_rate: float
    auxiliary_weight: float
    batch_size: int
    is_vision_only: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """The course of training by its progress, 0 to 1.

    Shapes, colours and letters are learned cheapest without language, so vision is first.
    Small batches learn faster early on, larger ones late. Slow tasks (comparing two
    backgrounds) stay at chance until the learning rate falls.

    Attributes:
        learning_rate: Its peak.
        warm_steps: Linear rise from 0, in steps.
        vision_share: Part of the whole without language.
        vision_batch: Pictures of a step of that part.
        batches: (progress to start at, conversations of a step).
        cool_share: Last part, in which the learning rate falls to 0.
        final_auxiliary: The auxiliary weight falls from 1 to this during the last part.
    """

    learning_rate: float = 2e-3
    warm_steps: int = 60
    vision_share: float = 0.1
    vision_batch: int = 96
    batches: tuple[tuple[float, int], ...] = ((0.0, 32), (0.25, 40), (0.55, 56), (0.8, 80))
    cool_share: float = 0.45
    final_auxiliary: float = 0.3

    def with_batch(self, size: int | None) -> Schedule:
        """Return the same course with *size* conversations in its first step with language.

        The other batches change in proportion: small ones suit a slow machine. None is as it is.
        """
        if size is None:
            return self
        first = self.batches[0][1]
        return replace(
            self,
            vision_batch=max(1, self.vision_batch * size // first),
            batches=tuple((start, max(1, each * size // first)) for start, each in self.batches),
        )

    def at(self, progress: float, step: int) -> Phase:
        """Return what holds at *progress* (0 to 1), in step *step* (from 0)."""
        left = max(0.0, 1 - progress) / self.cool_share
        cooling = min(1.0, left)
        warming = min(1.0, (step + 1) / self.warm_steps)
        is_vision_only = progress < self.vision_share
        batch = self.vision_batch
        if not is_vision_only:
            batch = max((start, size) for start, size in self.batches if progress >= start)[1]
        return Phase(
            learning_rate=self.learning_rate * warming * max(0.005, cooling),
            auxiliary_weight=self.final_auxiliary + (1 - self.final_auxiliary) * cooling,
            batch_size=batch,
            is_vision_only=is_vision_only,
        )
