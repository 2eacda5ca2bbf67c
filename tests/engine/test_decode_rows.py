"""Rows of a batch that ended cost nothing, and what they leave behind changes no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from idefics_cli.engine.local.engine import LocalEngine
from tests.support import tiny
from tests.support.prompts import REPLY_LIMITS, mixed_requests

EngineOf = Callable[[str], LocalEngine]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, bool]]]:
    """Of every step after a prompt: how many rows it had, and whether it had a mask."""
    seen: list[tuple[int, bool]] = []
    call = nn.Module.__call__

    def watched(self: nn.Module, *args: object, **kwargs: object) -> object:
        if type(self).__name__.endswith(("ForConditionalGeneration", "ForVisionText2Text")):
            ids = kwargs.get("input_ids")
            if isinstance(ids, torch.Tensor) and ids.shape[1] == 1:
                seen.append((ids.shape[0], kwargs["attention_mask"] is not None))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", watched)
    return seen


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_batch_whose_rows_end_apart_says_what_each_says_alone(
    kind: str, endless: EngineOf
) -> None:
    engine = endless(kind)
    for way in ({}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.4}):
        batch = mixed_requests(engine, **way)
        alone = [engine.complete([prepared])[0].token_ids for prepared in batch]
        together = [answer.token_ids for answer in engine.complete(batch)]
        assert together == alone
        assert [len(tokens) for tokens in together] == list(REPLY_LIMITS.values())


@pytest.mark.parametrize("kind", ["idefics", "idefics2"])
def test_a_row_that_ended_is_computed_no_more(
    kind: str, endless: EngineOf, steps: list[tuple[int, bool]]
) -> None:
    engine = endless(kind)
    engine.complete(mixed_requests(engine))
    longest = max(REPLY_LIMITS.values())
    going = [sum(limit > step for limit in REPLY_LIMITS.values()) for step in range(1, longest)]
    assert [rows for rows, _ in steps] == going
    # The last row is alone, so nothing of it is padding.
    assert steps[-1] == (1, False)
    assert steps[0] == (4, True)


def test_a_cancelled_batch_ends_the_rows_that_go_on_and_no_others(endless: EngineOf) -> None:
    engine = endless("idefics2")
    inference = engine.inference

    class AfterFour:
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 8

    answer = inference.answer(mixed_requests(engine), AfterFour())
    finishes = [row.finish for row in answer.rows]
    assert "cancelled" in finishes
    assert "length" in finishes
    assert [row.finish for row in answer.rows if len(row.tokens) == row.limit] == ["length"] * (
        finishes.count("length")
    )
