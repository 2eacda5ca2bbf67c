"""The last tokens of a prompt run through the compiled step, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.prompt.prefill import Prompt, prefill_pieces
from idefics_cli.models.families.internals import cache_name
from idefics_cli.models.families.kv_cache import growing_cache
from idefics_cli.models.kernels.text_step.step import States, TextStep
from tests.support.kernels import needs_compiler, relative_error
from tests.support.prompts import CONVERSATIONS, NEW_TOKENS, as_request, open_engine, picture
from tests.support.reference import load_reference

pytestmark = needs_compiler

KINDS = ("idefics2", "idefics3", "smolvlm2")
Ran = list[tuple[int, int]]
"""The position and the number of tokens of each prompt that ran through the compiled step."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    found: Ran = []
    run_prompt = TextStep.run_prompt

    def watched(step: TextStep, states: Tensor, position: int, layers: Sequence[States]) -> Tensor:
        found.append((position, len(states)))
        return run_prompt(step, states, position, layers)

    monkeypatch.setattr(TextStep, "run_prompt", watched)
    return found


def prefill(engine: LocalEngine, ids: Tensor, sizes: Sequence[int]) -> tuple[Tensor, DynamicCache]:
    """Run *ids* in pieces of *sizes*; return the logits (1, V) and the states."""
    loaded, left, cache = engine.loaded, iter(sizes), growing_cache()
    pieces = prefill_pieces(
        loaded.model,
        loaded.family,
        Prompt({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, None, [ids.shape[1]]),
        cache,
        piece_tokens=lambda: next(left),
        text_step=loaded.text_step,
    )
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            logits: Tensor = end.value
            return logits[:, -1], cache


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_any_length_have_the_logits_and_states_of_the_library(
    kind: str, checkpoint: Callable[[str], Path], ran: Ran
) -> None:
    torch.manual_seed(0)
    with open_engine(checkpoint(kind), kind) as engine, torch.inference_mode():
        call = getattr(engine.loaded.model, "forward")  # noqa: B009  # the protocol has no `forward`
        name = cache_name(engine.loaded.model.config.model_type)
        for held in (0, 1, 40, 150):
            for new in (1, 2, 15, 31, 32, 33):
                ran.clear()
                ids = torch.randint(3, 90, (1, held + new))
                theirs = DynamicCache()
                wanted = call(input_ids=ids, use_cache=True, **{name: theirs}).logits[:, -1]
                logits, cache = prefill(engine, ids, [held, new] if held else [new])
                pieces = [(0, held), (held, new)] if held else [(0, new)]
                assert ran == [piece for piece in pieces if piece[1] <= 32]
                assert relative_error(logits, wanted) < 1e-5
                assert cache.get_seq_length() == held + new
                for ours, layer in zip(cache.layers, theirs.layers, strict=True):
                    assert relative_error(ours.keys, layer.keys) < 1e-5
                    assert relative_error(ours.values, layer.values) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_next_question_gets_the_librarys_answer_by_the_compiled_step(
    kind: str, checkpoint: Callable[[str], Path], ran: Ran
) -> None:
    reference = load_reference(checkpoint(kind), kind)
    turns = CONVERSATIONS["later turns"]
    with open_engine(checkpoint(kind), kind) as engine:
        first, whole = as_request(engine, turns[:1]), as_request(engine, turns[:3])
        (answer,) = engine.complete([first])
        assert not ran or ran[-1][1] <= 32
        ran.clear()
        (again,) = engine.complete([whole])
        new = again.prompt_tokens - again.reused_tokens
        # The reply of the conversation is not the one of the model, so it is new.
        assert ran == [(again.reused_tokens, new)]
        assert 1 < new <= 32
        assert again.reused_tokens >= answer.prompt_tokens - 4
        ran.clear()
        rows = engine.complete([whole, first])
        # Prompts of several rows have padding, which the step does not know.
        assert ran == []
    assert [one.token_ids for one in rows] == [again.token_ids, answer.token_ids]
    for told, count in (answer, 1), (again, 3):
        pictures = [(role, [picture(i) for i in at], text) for role, at, text in turns[:count]]
        theirs = reference.generate(reference.inputs(pictures), max_new_tokens=NEW_TOKENS)
        assert list(told.token_ids) == theirs


def test_a_prompt_that_ends_beside_other_replies_leaves_them_as_they_were(
    checkpoint: Callable[[str], Path], ran: Ran
) -> None:
    with open_engine(checkpoint("smolvlm2"), "smolvlm2") as engine:
        turns = CONVERSATIONS["no image"]
        sampling = Sampling(max_new_tokens=30)
        long = as_request(engine, CONVERSATIONS["two images"], sampling=sampling)
        short = as_request(engine, turns, sampling=Sampling(max_new_tokens=5))
        alone = [engine.complete([each])[0].token_ids for each in (long, short)]
        engine.inference.drop_caches()
        ran.clear()
        chunks = engine.stream(long)
        next(chunks)
        (beside,) = engine.complete([short])
        tokens = sum(1 for _ in chunks)
        assert ran
        assert beside.token_ids == alone[1]
        assert tokens
        (again,) = engine.complete([long])
    assert again.token_ids == alone[0]
