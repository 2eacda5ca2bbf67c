"""The course of the training: which settings each step has.

Vision is learned first, and then language with growing batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from idefics_cli.training.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Phase:
    """The settings of one step.

    Attributes:
        learning_rate: Learning rate of all parameters.
        auxiliary_weight: Weight of the auxiliary losses (see `losses.py`). The loss of the answers
            has weight 1.
        batch_size: Number of conversations, summed over all processes.
        is_vision_only: Whether only the auxiliary losses are learned.
    """

    learning_rate: float
    auxiliary_weight: float
    batch_size: int
    is_vision_only: bool


@dataclass(frozen=True, slots=True)
class Course:
    """The settings of every step, by the progress of the run (0 to 1).

    Vision comes first because shapes, colours and letters are learned at the lowest cost without
    language. Small batches learn faster early in the run, larger ones later. Slow tasks, such as
    comparing two backgrounds, are answered no better than by chance until the learning rate falls.

    Attributes:
        schedule: Learning rate.
        vision_share: Share of the run, 0 to 1, at its beginning in which only vision is learned.
        vision_batch: Number of pictures in a step of that part.
        batches: Pairs of a progress and the number of conversations in each step from there on.
        final_auxiliary: Auxiliary weight at the end. The weight falls from 1 to this value while
            the learning rate falls.
    """

    schedule: Schedule = field(
        default_factory=lambda: Schedule(peak=2e-3, warm_steps=60, cool_share=0.45)
    )
    vision_share: float = 0.1
    vision_batch: int = 96
    batches: tuple[tuple[float, int], ...] = ((0.0, 32), (0.25, 40), (0.55, 56), (0.8, 80))
    final_auxiliary: float = 0.3

    def with_batch(self, size: int | None) -> Course:
        """Return this course with *size* conversations in its first step with language.

        All other batches change in proportion. A slow machine needs small batches. None changes
        nothing.
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
        """Return the settings at *progress* (0 to 1), in step *step* (from 0)."""
        is_vision_only = progress < self.vision_share
        batch = self.vision_batch
        if not is_vision_only:
            batch = max((start, size) for start, size in self.batches if progress >= start)[1]
        auxiliary = (1 - self.final_auxiliary) * self.schedule.cooling(progress)
        return Phase(
            learning_rate=self.schedule.learning_rate(progress, step),
            auxiliary_weight=self.final_auxiliary + auxiliary,
            batch_size=batch,
            is_vision_only=is_vision_only,
        )
