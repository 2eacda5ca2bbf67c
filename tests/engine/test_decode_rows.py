"""Rows of a batch that ended cost nothing, and their states change no other row."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cache

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.decode.steps import PlainStep
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.prompt.prefill import Prompt
from idefics_cli.models.families.base import Inputs
from idefics_cli.models.families.kv_cache import growing_cache
from idefics_cli.models.families.protocols import Model, StepOutput
from idefics_cli.models.kernels.text_step.step import TextStep
from tests.support import tiny
from tests.support.prompts import REPLY_LIMITS, AfterForwards, mixed_requests

EngineOf = Callable[[str], LocalEngine]


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_batch_whose_rows_end_apart_says_what_each_says_alone(
    kind: str, endless: EngineOf
) -> None:
    engine = endless(kind)
    for sampling in (
        Sampling(),
        Sampling(temperature=1.0, seed=3),
        Sampling(repetition_penalty=1.4),
    ):
        batch = mixed_requests(engine, sampling)
        alone = [engine.complete([prepared])[0].token_ids for prepared in batch]
        together = [answer.token_ids for answer in engine.complete(batch)]
        assert together == alone
        assert [len(tokens) for tokens in together] == list(REPLY_LIMITS.values())


@pytest.mark.parametrize("kind", ["idefics", "idefics2"])
def test_a_row_that_ended_is_computed_no_more(
    kind: str, endless: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = endless(kind)
    family = engine.loaded.family
    forward = family.forward
    # The number of rows of each decode step, and whether it had a mask.
    steps: list[tuple[int, bool]] = []

    def watched(
        model: Model, inputs: Inputs, cache: Cache, *, mask: Tensor | None, positions: Tensor
    ) -> StepOutput:
        rows, length = positions.shape
        if length == 1:
            steps.append((rows, mask is not None))
        return forward(model, inputs, cache, mask=mask, positions=positions)

    monkeypatch.setattr(family, "forward", watched)
    # Compiled steps do not call the forward of the family.
    monkeypatch.setattr(TextStep, "MOST_ROWS", 0)
    engine.complete(mixed_requests(engine))
    longest = max(REPLY_LIMITS.values())
    active = [sum(limit > step for limit in REPLY_LIMITS.values()) for step in range(1, longest)]
    assert [rows for rows, _ in steps] == active
    # The last row is alone, so it has no padding.
    assert steps[-1] == (1, False)
    assert steps[0] == (4, True)


def test_a_cancelled_batch_ends_the_active_rows_and_no_others(
    endless: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = endless("idefics2")
    # One forward of the prompts, and six decode steps.
    cancel = AfterForwards(monkeypatch, engine, 7)
    answers = engine.complete(mixed_requests(engine), cancel=cancel)
    expected = [
        ("length", limit) if limit <= 7 else ("cancelled", 7) for limit in REPLY_LIMITS.values()
    ]
    assert [(answer.finish, answer.new_tokens) for answer in answers] == expected


class TwoCards(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no types
    """Checks indices as CUDA does; `meta` stands for the first card, `cpu` for the second."""

    def __torch_dispatch__(  # type: ignore[no-untyped-def]  # torch's method has no types
        self, function, types, args=(), kwargs=None
    ):
        if function is torch.ops.aten.index.Tensor:
            tensor, indices = args
            devices = {"cpu", str(tensor.device)}
            if any(index is not None and str(index.device) not in devices for index in indices):
                raise RuntimeError("indices should be either on cpu or on the same device")
        return function(*args, **(kwargs or {}))


def test_rows_leave_a_model_that_two_cards_hold(endless: EngineOf) -> None:
    loaded = endless("idefics2").loaded
    first, second = "meta", "cpu"
    cache = growing_cache()
    for layer, device in enumerate((first, second)):
        states = torch.arange(3.0, device=device)[:, None, None, None].expand(3, 2, 4, 2)
        cache.update(states, states, layer)
    mask = torch.ones(3, 4, device=first)
    prompt = SimpleNamespace(inputs={"attention_mask": mask}, image_features=None, mask=None)
    step = PlainStep(loaded.model, loaded.family, cast("Prompt", prompt), cache)
    with TwoCards():  # type: ignore[no-untyped-call]  # torch's class has no types
        step.keep_rows([0, 2])
    on_first, on_second = (layer.keys for layer in cast("Any", cache).layers)
    assert on_first.shape == on_second.shape == (2, 2, 4, 2)
    assert on_second[:, 0, 0, 0].tolist() == [0, 2]
