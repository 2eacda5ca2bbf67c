"""Learning rate over the course of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

_LOWEST_SHARE = 0.005


@dataclass(frozen=True, slots=True)
class Schedule:
    """A learning rate that rises linearly, stays at its peak, and falls linearly.

    Attributes:
        peak: Highest learning rate.
        warm_steps: Number of steps of the rise.
        cool_share: Last part of the run, 0 to 1, in which the learning rate falls.
    """

    peak: float
    warm_steps: int
    cool_share: float

    def learning_rate(self, progress: float, step: int) -> float:
        """Return the learning rate at *progress* (0 to 1), in step *step* (from 0)."""
        warming = min(1.0, (step + 1) / self.warm_steps)
        return self.peak * warming * max(_LOWEST_SHARE, self.cooling(progress))

    def cooling(self, progress: float) -> float:
        """Return 1 until the last part of the run begins; then it falls to 0 at *progress* 1."""
        return min(1.0, max(0.0, 1 - progress) / self.cool_share)


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """A learning rate that rises linearly, and then falls to 0 as a half cosine.

    Attributes:
        peak: Highest learning rate.
        steps: Number of steps of the run.
        warm_steps: Number of steps of the rise.
    """

    peak: float
    steps: int
    warm_steps: int

    @classmethod
    def of_run(cls, peak: float, steps: int) -> CosineSchedule:
        """Return the schedule whose rise takes 3 % of *steps*: at least 10, at most a third."""
        return cls(peak, steps, min(max(10, round(0.03 * steps)), math.ceil(steps / 3)))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate in step *step* (from 0)."""
        if step < self.warm_steps:
            return self.peak * (step + 1) / self.warm_steps
        progress = (step - self.warm_steps) / max(1, self.steps - self.warm_steps)
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))
