"""A tuning run as a value: what is trained, on what, and how long."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from idefics_cli.models.families.spec import PartName

if TYPE_CHECKING:
    from idefics_cli.training.examples import TrainingExample

MOST_TOKENS = 4096
"""Longer rows are left out, unless the user chooses another limit."""
_SMALL, _TINY = 1_000_000_000, 100_000_000


@dataclass(frozen=True, slots=True)
class TuneChoices:
    """How a model is trained. None leaves a choice to `with_defaults`.

    Attributes:
        parts: The parts of the model that are trained.
        full: Whether the weights themselves are trained, and not LoRA matrices beside them.
        rank: Width of the LoRA matrices.
        alpha: Numerator of their scale.
        dropout: Share of their inputs that is dropped, 0 to 1.
        dora: Whether the changed weights get lengths of their own (DoRA).
        learning_rate: Highest learning rate.
        epochs: Number of times that each row is trained on.
        batch_size: Number of rows of a step.
        seed: Chooses the order of rows, the first matrices and the dropout.
        checkpointing: Whether activations are computed twice, to save memory.
        keeps_features: Whether the features of pictures are kept, if training does not change them.
        replay: Number of rows with the model's own answers to other questions, for each row.
    """

    parts: tuple[PartName, ...] = ("text",)
    full: bool = False
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.05
    dora: bool = False
    learning_rate: float | None = None
    epochs: float | None = None
    batch_size: int | None = None
    seed: int = 0
    checkpointing: bool | None = None
    keeps_features: bool = True
    replay: float | None = None


@dataclass(frozen=True, slots=True)
class _Defaults:
    lora_rate: float
    full_rate: float
    batch_size: int
    epochs: float
    least_steps: int
    least_full_steps: int
    replay: float


# The rates for LoRA are those of the Hugging Face examples; the first row was measured with the
# built-in model.
_BY_SIZE: tuple[tuple[float, _Defaults], ...] = (
    (_TINY, _Defaults(3e-3, 1e-3, 8, 3, 300, 600, 1.0)),
    (_SMALL, _Defaults(2e-4, 1e-5, 16, 3, 0, 0, 0.0)),
    (math.inf, _Defaults(1e-4, 1e-5, 16, 3, 0, 0, 0.0)),
)


@dataclass(frozen=True, slots=True)
class TuneJob:
    """A run with all its choices.

    Attributes:
        choices: None of them is None.
        train: The examples that are learned.
        validation: The examples that are not.
        steps: Number of steps.
    """

    choices: TuneChoices
    train: Sequence[TrainingExample]
    validation: Sequence[TrainingExample]
    steps: int

    @property
    def steps_of_epoch(self) -> int:
        """Number of steps of an epoch."""
        return math.ceil(len(self.train) / (self.choices.batch_size or 1))

    def with_rows(self, rows: Sequence[TrainingExample]) -> TuneJob:
        """Return the job with further *rows* to learn, as often as the others."""
        train = [*self.train, *rows]
        steps = round((self.choices.epochs or 1) * math.ceil(len(train) / self._batch_size))
        return replace(self, train=train, steps=max(1, steps))

    @property
    def _batch_size(self) -> int:
        return self.choices.batch_size or 1

    @property
    def data_digest(self) -> str:
        """A digest of all tokens, labels and pictures, and of their division."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation):
            for example in part:
                tokens = example.tokens
                digest.update(repr((tokens.token_ids, tokens.labels)).encode())
                digest.update(example.content)
            digest.update(b"|")
        return digest.hexdigest()


def make_job(
    choices: TuneChoices,
    train: Sequence[TrainingExample],
    validation: Sequence[TrainingExample],
    parameters: int,
) -> TuneJob:
    """Return the job with a default for each choice that is None.

    Args:
        choices: What the user chose.
        train: The examples that are learned.
        validation: The examples that are not.
        parameters: Number of weights of the model.
    """
    usual = next(row for limit, row in _BY_SIZE if parameters < limit)
    rate = usual.full_rate if choices.full else usual.lora_rate
    batch = min(choices.batch_size or usual.batch_size, max(1, len(train)))
    per_epoch = math.ceil(len(train) / batch)
    epochs = choices.epochs
    if epochs is None:
        least = usual.least_full_steps if choices.full else usual.least_steps
        epochs = max(usual.epochs, math.ceil(least / max(1, per_epoch)))
    made = replace(
        choices,
        alpha=2.0 * choices.rank if choices.alpha is None else choices.alpha,
        learning_rate=rate if choices.learning_rate is None else choices.learning_rate,
        epochs=epochs,
        batch_size=batch,
        replay=usual.replay if choices.replay is None else choices.replay,
        checkpointing=is_checkpointed(parameters)
        if choices.checkpointing is None
        else choices.checkpointing,
    )
    return TuneJob(made, train, validation, max(1, round(epochs * per_epoch)))


def is_checkpointed(parameters: int) -> bool:
    """Whether a model of so many weights computes its activations twice, to save memory."""
    return parameters >= _TINY


def settings_of(choices: TuneChoices) -> dict[str, object]:
    """Return *choices* as they are written to idefics.json."""
    return {**asdict(choices), "parts": list(choices.parts)}
