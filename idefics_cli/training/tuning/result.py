"""The outcome of a tuning run."""

from __future__ import annotations

from dataclasses import dataclass

from idefics_cli.training.tuning.events import Evaluated


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """A row that the model does not learn, with its answers.

    Attributes:
        source: Its first picture; "" if it has none.
        question: The last question.
        wanted: The answer of the data.
        before: The answer before training.
        after: The answer after it.
    """

    source: str
    question: str
    wanted: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class TuneResult:
    """The outcome of a run.

    Attributes:
        is_whole: Whether all steps are done; False after a stop.
        step: Number of steps that are done.
        steps: Number of steps of the run.
        weights_step: Number of steps after which the weights in the folder were those written.
        evaluations: All evaluations, in order.
        samples: Rows with their answers; empty after a stop.
        others: Number of other questions that were asked before and after.
        kept: Number of those whose answer is the same.
    """

    is_whole: bool
    step: int
    steps: int
    weights_step: int
    evaluations: tuple[Evaluated, ...]
    samples: tuple[SampleAnswer, ...]
    others: int = 0
    kept: int = 0
