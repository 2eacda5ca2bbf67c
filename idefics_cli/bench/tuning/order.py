"""What a process of the scenario `tune` has to train, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from idefics_cli.bench.cold_start.processes import Side
from idefics_cli.core.types import DtypeName, LoadSpec

SEED = 0
"""Seed of the LoRA matrices, so that both sides begin with the same ones."""
LEARNING_RATE = 1e-3
"""The learning rate of all steps. It is high, so that a wrong gradient shows in the next losses."""


@dataclass(frozen=True, slots=True)
class CaptionPair:
    """A row of the training data: a picture, a question about it, and the answer to learn."""

    picture: Path
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class TuneOrder:
    """What a process has to train; the process gets this order as a pickle.

    Attributes:
        side: The side that trains.
        spec: How to load the model for training.
        computed: Dtype of the computation.
        folder: The folder of the checkpoint.
        steps: The rows of each step.
        checkpointing: Whether activations are computed twice, to save memory.
        scratch: A folder for temporary files.
    """

    side: Side
    spec: LoadSpec
    computed: DtypeName
    folder: Path
    steps: tuple[tuple[CaptionPair, ...], ...]
    checkpointing: bool
    scratch: Path


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a process reports about a step.

    Attributes:
        seconds: Time from the picture files to the updated weights.
        loss: Mean cross entropy of the labelled tokens before the update.
        labelled: Number of labelled tokens.
        peak_bytes: Peak memory of the process until now. On a GPU it is the memory of the tensors
            there, on a CPU the resident memory.
    """

    seconds: float
    loss: float
    labelled: int
    peak_bytes: int
