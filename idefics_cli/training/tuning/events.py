"""What a tuning run tells while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class TargetsChosen:
    """The model is loaded.

    Attributes:
        layers: Number of layers with LoRA matrices; 0 if the weights are trained.
        weights: Number of trained weights.
        parts: The parts that are trained.
        steps: Number of steps of the run.
        done: Number of steps that an earlier run has done.
    """

    layers: int
    weights: int
    parts: tuple[str, ...]
    steps: int
    done: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step is done.

    Attributes:
        step: Number of steps that are done.
        steps: Number of steps of the run.
        loss: Mean cross entropy of the labelled tokens.
        learning_rate: Learning rate.
        is_skipped: Whether the weights stayed as they were.
        tokens: Number of tokens of the step.
        seconds: Time that the step took.
        peak_bytes: Largest memory so far: of the GPU, or of the process.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    is_skipped: bool
    tokens: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The model answered rows that it does not learn.

    Attributes:
        step: Number of steps that were done.
        loss: Mean cross entropy of the labelled tokens.
        exact: Number of greedy answers that are those of the data.
        asked: Number of rows that were answered.
    """

    step: int
    loss: float
    exact: int
    asked: int

    @property
    def rank(self) -> tuple[int, float]:
        """The better of two evaluations of a run has the larger rank."""
        return self.exact, -self.loss


@dataclass(frozen=True, slots=True)
class Evaluating:
    """An evaluation begins after *step* steps."""

    step: int


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint was written after *step* steps."""

    step: int


TuneEvent: TypeAlias = TargetsChosen | Stepped | Evaluated | Evaluating | Saved
