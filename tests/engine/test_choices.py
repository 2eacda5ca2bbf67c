"""Scores of answers in every family: equal to those of a whole forward of prompt and answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.prompt.scoring import answer_tokens
from idefics_cli.engine.schema.choices import choice_constraint, choice_result, wordings
from tests.support.prompts import CONVERSATIONS, as_request, picture
from tests.support.reference import Reference, load_reference

EngineOf = Callable[[str], LocalEngine]
FAMILIES = ("idefics", "idefics2", "idefics3", "smolvlm2")


def test_a_choice_may_be_worded_as_models_do() -> None:
    assert wordings("pink") == ("pink", "Pink", "Pink.")
    assert wordings("Yes.") == ("Yes.",)
    assert wordings("éclair") == ("éclair", "Éclair", "Éclair.")
    assert wordings("3 or more?") == ("3 or more?",)


def test_probabilities_are_shares_of_the_mass() -> None:
    result = choice_result(["a", "b"], [[math.log(0.3), math.log(0.1)], [math.log(0.2)]])
    assert dict(result.probabilities) == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    assert result.mass == pytest.approx(0.6)
    assert result.best[0] == "a"
    long = choice_result(["a", "b"], [[-2000.0], [-2001.0]])
    assert dict(long.probabilities)["a"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert long.mass == 0.0


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_score_is_that_of_one_forward_of_the_library_over_prompt_and_answer(
    kind: str, endless: EngineOf, checkpoint: Callable[[str], Path]
) -> None:
    engine, reference = endless(kind), load_reference(checkpoint(kind), kind)
    family, turns = engine.loaded.family, CONVERSATIONS["two images"]
    choices = ("red", "blue or green", "Red fox")
    prepared = as_request(engine, turns)
    request = replace(prepared.request, constraint=choice_constraint(choices))
    # The longer prompt pads the other, and both share each step.
    other = as_request(engine, CONVERSATIONS["later turns"])
    other = replace(other, request=replace(other.request, constraint=request.constraint))
    (found, _) = engine.complete([replace(prepared, request=request), other])

    inputs = reference.inputs(
        [(role, [picture(number) for number in numbers], text) for role, numbers, text in turns]
    )
    logs = [
        [
            _score(reference, inputs, answer_tokens(family, text), sorted(family.stop_ids))
            for text in wordings(choice)
        ]
        for choice in choices
    ]
    expected = choice_result(choices, logs)
    assert found.choice is not None
    assert dict(found.choice.probabilities) == pytest.approx(dict(expected.probabilities), rel=1e-3)
    assert found.choice.mass == pytest.approx(expected.mass, rel=1e-3)


def _score(
    reference: Reference, inputs: dict[str, Tensor], answer: Sequence[int], stop_ids: list[int]
) -> float:
    """Return the logarithm of the probability of *answer* and of an end after it."""
    tokens = torch.tensor([answer])
    longer = {k: v for k, v in inputs.items() if k != "mm_token_type_ids"}
    length = longer["input_ids"].shape[1]
    longer["input_ids"] = torch.cat([longer["input_ids"], tokens], dim=1)
    for name in ("attention_mask", "image_attention_mask"):
        if name in longer:
            end = longer[name][:, -1:]
            longer[name] = torch.cat([longer[name], *([end] * len(answer))], dim=1)
    with torch.inference_mode():
        logits = reference.model(**longer, use_cache=False).logits[0, length - 1 :]
    logs = logits.log_softmax(-1)
    said = sum(float(logs[place, token]) for place, token in enumerate(answer))
    return said + float(logs[-1, stop_ids].logsumexp(-1))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_states_of_the_prompt_stay_as_they_were(kind: str, endless: EngineOf) -> None:
    engine = endless(kind)
    prepared = as_request(engine, CONVERSATIONS["one image"])
    scored = replace(
        prepared, request=replace(prepared.request, constraint=choice_constraint(("a", "b")))
    )
    before = engine.complete([prepared])[0].token_ids
    first, again = (engine.complete([scored])[0].choice for _ in range(2))
    assert first is not None
    assert again is not None
    assert dict(again.probabilities) == pytest.approx(dict(first.probabilities), rel=1e-3)
    assert engine.complete([prepared])[0].token_ids == before
