"""Optimizer steps: micro-batches, checkpointing, dropout, and gradients that are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from idefics_cli.core.errors import IdeficsError, MemoryLimitError
from idefics_cli.models.families.spec import PartName
from idefics_cli.models.loading.loader import Loaded
from idefics_cli.training.examples import TrainingExample
from idefics_cli.training.pictures import LearnedFeatures
from idefics_cli.training.steps import TrainingSteps, micro_batches
from idefics_cli.training.targets import (
    LoraChoice,
    Targets,
    enable_checkpointing,
    insert_lora,
)
from tests.support.training import load_tiny, make_examples, preprocessor

FAMILIES = ("idefics", "idefics2", "idefics3", "smolvlm2")
ALL_PARTS: tuple[PartName, ...] = ("text", "connector", "vision")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: tmp_path_factory.mktemp(kind) for kind in FAMILIES}


class Trained:
    """A tiny model with random LoRA matrices, and the gradients of each step."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        *,
        parts: tuple[PartName, ...] = ALL_PARTS,
        dropout: float = 0.0,
        micro_tokens: int = 4096,
        checkpointing: bool = False,
    ) -> None:
        self.loaded: Loaded = load_tiny(folder, kind)
        self.model = cast("nn.Module", self.loaded.model)
        family = self.loaded.family
        choice = LoraChoice(parts, rank=4, dropout=dropout)
        torch.manual_seed(1)
        self.targets: Targets = insert_lora(self.model, family.spec, choice)
        for parameter in self.targets.parameters.values():
            parameter.data = torch.randn_like(parameter) / 10
        if checkpointing:
            enable_checkpointing(self.model)
        self.gradients: dict[str, Tensor] = {}
        self.examples = make_examples(family, 8)
        self.steps = TrainingSteps(
            self.loaded.model,
            family,
            self.targets,
            LearnedFeatures(self.loaded.model, family, preprocessor(family)),
            micro_tokens=micro_tokens,
            on_gradients=self.note,
        )

    def note(self) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                self.gradients[name] = parameter.grad.clone()

    def weights(self) -> dict[str, Tensor]:
        return {name: each.detach().clone() for name, each in self.targets.parameters.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    assert largest > 0
    for name, each in expected.items():
        assert float((found[name] - each).abs().max()) <= 1e-5 * largest, name


def spoil(parameter: nn.Parameter, factor: float) -> RemovableHandle:
    """Multiply the gradients of *parameter* by *factor*."""
    hook: RemovableHandle = parameter.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]  # torch 2.13 has no annotation
    return hook


@pytest.mark.parametrize("kind", FAMILIES)
def test_gradients_reach_exactly_the_named_parts(kind: str, folders: dict[str, Path]) -> None:
    for part in ALL_PARTS:
        trained = Trained(folders[kind], kind, parts=(part,))
        trained.steps.step(trained.examples, number=0, learning_rate=1e-3)
        assert trained.gradients.keys() == trained.targets.parameters.keys()
        assert all(each.any() for each in trained.gradients.values())


@pytest.mark.parametrize("kind", FAMILIES)
def test_micro_batches_give_the_gradients_of_one_batch(kind: str, folders: dict[str, Path]) -> None:
    whole = Trained(folders[kind], kind)
    parts = Trained(folders[kind], kind, micro_tokens=180 if kind == "idefics3" else 60)
    assert len(list(micro_batches(parts.examples, parts.steps.micro_tokens))) >= 4

    once = whole.steps.step(whole.examples, number=0, learning_rate=1e-3)
    four = parts.steps.step(parts.examples, number=0, learning_rate=1e-3)

    assert four.loss == pytest.approx(once.loss, rel=1e-5)
    assert_close(parts.gradients, whole.gradients)


@pytest.mark.parametrize("kind", FAMILIES)
def test_checkpointing_changes_no_gradient(kind: str, folders: dict[str, Path]) -> None:
    plain = Trained(folders[kind], kind, dropout=0.3)
    checkpointed = Trained(folders[kind], kind, dropout=0.3, checkpointing=True)
    # A module in a layer runs again in the backward pass; its hook counts that.
    runs: tuple[list[int], list[int]] = ([], [])
    for each, counted in zip((checkpointed, plain), runs, strict=True):
        layer = each.model.get_submodule(each.targets.layers[0])
        layer.register_forward_hook(lambda *_, counted=counted: counted.append(1))

    for each in (plain, checkpointed):
        each.steps.step(each.examples, number=0, learning_rate=1e-3)

    assert len(runs[0]) == 2 * len(runs[1]) > 0
    assert_close(checkpointed.gradients, plain.gradients)
    assert not any(module.training for module in checkpointed.model.modules())


def test_dropout_is_that_of_the_number_of_the_step(folders: dict[str, Path]) -> None:
    losses = []
    for number in (3, 3, 4):
        trained = Trained(folders["idefics2"], "idefics2", dropout=0.5)
        torch.rand(number * 7)  # what else draws random numbers does not matter
        losses.append(trained.steps.step(trained.examples, number=number, learning_rate=0.0).loss)
    assert losses[0] == losses[1] != losses[2]
    assert trained.steps.mean_loss(trained.examples) == trained.steps.mean_loss(trained.examples)


def test_a_step_from_a_saved_state_is_that_of_an_uninterrupted_run(
    folders: dict[str, Path],
) -> None:
    one, two = (Trained(folders["idefics3"], "idefics3", dropout=0.1) for _ in range(2))
    for number in range(2):
        one.steps.step(one.examples, number=number, learning_rate=1e-2)
    weights, state = one.weights(), one.steps.state()
    for name, parameter in two.targets.parameters.items():
        parameter.data.copy_(weights[name])
    two.steps.load_state({name: tensor.clone() for name, tensor in state.items()})

    for each in (one, two):
        each.steps.step(each.examples, number=2, learning_rate=1e-2)

    assert all(torch.equal(two.weights()[name], each) for name, each in one.weights().items())


def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(
    folders: dict[str, Path],
) -> None:
    trained = Trained(folders["idefics2"], "idefics2")
    trained.steps.step(trained.examples, number=0, learning_rate=1e-2)
    parameter = next(iter(trained.targets.parameters.values()))
    before, kept = trained.weights(), parameter.data.clone()
    handle = spoil(parameter, math.nan)

    outcome = trained.steps.step(trained.examples, number=1, learning_rate=1e-2)

    assert outcome.is_skipped
    assert all(torch.equal(trained.weights()[name], each) for name, each in before.items())
    handle.remove()
    assert not trained.steps.step(trained.examples, number=2, learning_rate=1e-2).is_skipped
    assert not torch.equal(parameter.data, kept)


def test_five_such_steps_in_a_row_end_the_run(folders: dict[str, Path]) -> None:
    trained = Trained(folders["idefics2"], "idefics2")
    parameter = next(iter(trained.targets.parameters.values()))
    spoil(parameter, math.inf)
    for number in range(4):
        assert trained.steps.step(trained.examples, number=number, learning_rate=1e-2).is_skipped
    with pytest.raises(IdeficsError, match="the gradients of 5 steps in a row were not finite"):
        trained.steps.step(trained.examples, number=4, learning_rate=1e-2)


def test_micro_batches_are_halved_when_the_memory_runs_out(folders: dict[str, Path]) -> None:
    trained = Trained(folders["idefics2"], "idefics2", micro_tokens=400)
    whole = Trained(folders["idefics2"], "idefics2", micro_tokens=400)
    whole.steps.step(whole.examples, number=0, learning_rate=1e-3)
    full = _Full(trained.examples, trained.loaded, most_rows=3)
    trained.steps = TrainingSteps(
        trained.loaded.model,
        trained.loaded.family,
        trained.targets,
        full,
        micro_tokens=400,
        on_gradients=trained.note,
    )

    trained.steps.step(trained.examples, number=0, learning_rate=1e-3)

    assert trained.steps.micro_tokens == 100
    assert_close(trained.gradients, whole.gradients)
    full.most_rows = 0
    with pytest.raises(MemoryLimitError, match="a row of 38 tokens is too much"):
        trained.steps.step(trained.examples, number=1, learning_rate=1e-3)


class _Full:
    """Features on a device without memory for more than some rows."""

    def __init__(
        self, examples: Sequence[TrainingExample], loaded: Loaded, *, most_rows: int
    ) -> None:
        self.most_rows = most_rows
        self._features = LearnedFeatures(loaded.model, loaded.family, preprocessor(loaded.family))

    def features_of(self, examples: Sequence[TrainingExample]) -> list[list[Tensor]]:
        if len(examples) > self.most_rows:
            raise torch.OutOfMemoryError("out of memory")
        return self._features.features_of(examples)
