"""Optimizer steps: gradients of several micro-batches, clipped, then one update by AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from idefics_cli.core.errors import IdeficsError, MemoryLimitError
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.loading.errors import is_out_of_memory
from idefics_cli.training.examples import TrainingExample
from idefics_cli.training.labels import IGNORED, pad_batch
from idefics_cli.training.losses import sum_of_losses
from idefics_cli.training.pictures import FeatureSource
from idefics_cli.training.targets import Targets, training_mode

MOST_SKIPPED = 5
"""A run ends after this number of steps in a row whose gradients were not finite."""
_MAX_NORM = 1.0


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one step did.

    Attributes:
        loss: Mean cross entropy of the labelled tokens.
        norm: Norm of the gradients before they were clipped; infinite or NaN in a skipped step.
        labelled: Number of labelled tokens.
        tokens: Number of tokens, without padding.
        pictures: Number of pictures.
    """

    loss: float
    norm: float
    labelled: int
    tokens: int
    pictures: int

    @property
    def is_skipped(self) -> bool:
        """Whether the weights stayed as they were, because the gradients were not finite."""
        return not math.isfinite(self.norm)


class TrainingSteps:
    """Trains a model step by step.

    A step is a function of the weights, the state of the optimizer, the examples, and its number,
    from which its dropout follows. So a run that goes on after a stop gives the same bits.

    Args:
        model: In eval mode.
        family: The family of the model.
        targets: What is trained.
        features: The features of pictures.
        seed: Chooses the dropout.
        autocast: Dtype of the computation; None computes in the dtype of the weights.
        micro_tokens: Largest number of tokens of a micro-batch, padding included. One row may have
            more. It is halved when the memory of the device runs out.
        on_gradients: Called when the gradients of a step are complete, before they are clipped.
    """

    def __init__(
        self,
        model: Model,
        family: Family,
        targets: Targets,
        features: FeatureSource,
        *,
        seed: int = 0,
        autocast: torch.dtype | None = None,
        micro_tokens: int = 4096,
        on_gradients: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._family = model, family
        self._parameters = dict(targets.parameters)
        self._features = features
        self._seed, self._autocast = seed, autocast
        self.micro_tokens = micro_tokens
        self._on_gradients = on_gradients
        self._skipped = 0
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), weight_decay=0.0, fused=model.device.type == "cuda"
        )

    def step(
        self, examples: Sequence[TrainingExample], *, number: int, learning_rate: float
    ) -> StepOutcome:
        """Update the weights once, by the mean loss of all labelled tokens of *examples*.

        Raises:
            MemoryLimitError: If one row is too much for the memory.
            IdeficsError: If the gradients were not finite in `MOST_SKIPPED` steps in a row.
        """
        labelled = sum(count_labels(example) for example in examples)
        total = self._accumulate(examples, number, labelled)
        self._on_gradients()
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), _MAX_NORM))
        outcome = StepOutcome(
            loss=total / labelled,
            norm=norm,
            labelled=labelled,
            tokens=sum(len(example.tokens.token_ids) for example in examples),
            pictures=sum(len(example.pictures) for example in examples),
        )
        if outcome.is_skipped:
            self._skip()
            return outcome
        self._skipped = 0
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return outcome

    def mean_loss(self, examples: Sequence[TrainingExample]) -> float:
        """Return the mean cross entropy of the labelled tokens of *examples*, without dropout."""
        total = 0.0
        with torch.no_grad(), self._precision():
            for part in micro_batches(examples, self.micro_tokens):
                total += float(self._loss(part))
        return total / sum(count_labels(example) for example in examples)

    def state(self) -> dict[str, Tensor]:
        """Return the state of the optimizer, by the names of the parameters."""
        states = self._optimizer.state
        return {
            f"{name}.{key}": torch.as_tensor(value)
            for name, parameter in self._parameters.items()
            for key, value in states[parameter].items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned; the weights are the caller's.

        Raises:
            KeyError: If a tensor is missing.
        """
        if not tensors:
            return
        for name, parameter in self._parameters.items():
            self._optimizer.state[parameter] = {
                "step": tensors[f"{name}.step"].clone(),
                "exp_avg": tensors[f"{name}.exp_avg"].to(parameter, copy=True),
                "exp_avg_sq": tensors[f"{name}.exp_avg_sq"].to(parameter, copy=True),
            }

    def _accumulate(self, examples: Sequence[TrainingExample], number: int, labelled: int) -> float:
        """Add up the gradients of *examples*; return the sum of the losses."""
        while True:
            try:
                return self._backward(examples, number, labelled)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                longest = max(len(example.tokens.token_ids) for example in examples)
                if self.micro_tokens <= longest:
                    raise MemoryLimitError(
                        f"a row of {longest} tokens is too much for the memory of "
                        f"{self._model.device}",
                        hint="`--no-splitting` or `--longest-edge` gives pictures fewer tokens; or "
                        "take a smaller model, or `--quantization 4bit`",
                    ) from error
            self._optimizer.zero_grad()
            self.micro_tokens = max(self.micro_tokens // 2, longest)
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()

    def _backward(self, examples: Sequence[TrainingExample], number: int, labelled: int) -> float:
        torch.manual_seed(hash((self._seed, number)))
        total = 0.0
        with training_mode(cast("nn.Module", self._model)):
            for part in micro_batches(examples, self.micro_tokens):
                with self._precision():
                    loss = self._loss(part)
                (loss / labelled).backward()  # type: ignore[no-untyped-call]  # torch 2.13 has no annotation
                total += float(loss.detach())
        return total

    def _loss(self, examples: Sequence[TrainingExample]) -> Tensor:
        batch = pad_batch([example.tokens for example in examples], pad_id=self._family.pad_id)
        features = self._features.features_of(examples)
        return sum_of_losses(self._model, self._family, batch, features)

    def _precision(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._model.device.type, dtype=self._autocast)

    def _skip(self) -> None:
        self._optimizer.zero_grad()
        self._skipped += 1
        if self._skipped >= MOST_SKIPPED:
            raise IdeficsError(
                f"the gradients of {MOST_SKIPPED} steps in a row were not finite",
                hint="a smaller `--learning-rate`, or `--dtype float32`",
            )


def micro_batches(
    examples: Sequence[TrainingExample], tokens: int
) -> Iterator[Sequence[TrainingExample]]:
    """Yield *examples* in order, as many at a time as have *tokens* with padding; at least one."""
    part: list[TrainingExample] = []
    longest = 0
    for example in examples:
        longest = max(longest, len(example.tokens.token_ids))
        if part and longest * (len(part) + 1) > tokens:
            yield part
            part, longest = [], len(example.tokens.token_ids)
        part.append(example)
    if part:
        yield part


def count_labels(example: TrainingExample) -> int:
    """Return the number of labelled tokens of *example*."""
    return sum(label != IGNORED for label in example.tokens.labels)
