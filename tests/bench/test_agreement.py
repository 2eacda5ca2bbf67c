"""Whether the answers of both sides agree."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from idefics_cli.bench.agreement import TOLERANCES, compare, tolerance
from idefics_cli.bench.measure import Measurement, Round
from idefics_cli.core.types import GenerationRequest
from tests.support.bench import SPEC, ask


def rounds_of(*pairs: tuple[tuple[int, ...], tuple[int, ...]]) -> list[Round]:
    def outcome(tokens: tuple[int, ...]) -> Measurement:
        return Measurement((tokens,), ("",), 1.0, 0.5)

    return [Round((ask("x"),), outcome(ours), outcome(plain)) for ours, plain in pairs]


def test_equal_tokens_agree_and_no_gap_is_computed() -> None:
    def gap(request: GenerationRequest, tokens: tuple[int, ...]) -> float:
        raise AssertionError("a gap was computed")

    found = compare(rounds_of(((1, 2), (1, 2)), ((3,), (3,))), allowed=None, gap=gap)
    assert (found.agrees, found.equal, found.answers, found.gap) == (True, 1.0, 2, None)


@pytest.mark.parametrize(
    ("allowed", "gap", "agrees"),
    [(None, 0.0, False), (0.25, 0.25, True), (0.25, 0.26, False), (0.25, math.nan, False)],
)
def test_other_tokens_agree_only_within_the_tolerance(
    allowed: float | None, gap: float, agrees: bool
) -> None:
    found = compare(
        rounds_of(((1, 2, 3), (1, 9, 3, 4))), allowed=allowed, gap=lambda request, tokens: gap
    )
    assert (found.agrees, found.equal) == (agrees, 0.5)


def test_the_worst_answer_decides() -> None:
    distances: dict[tuple[int, ...], float] = {(1,): 0.1, (2,): 0.9}
    found = compare(
        rounds_of(((1,), (0,)), ((2,), (0,))), allowed=0.5, gap=lambda _, t: distances[t]
    )
    assert (found.agrees, found.gap) == (False, 0.9)


def test_float32_tolerates_nothing_and_every_other_format_something() -> None:
    assert tolerance(SPEC) is None
    assert tolerance(replace(SPEC, dtype="bfloat16")) == TOLERANCES["bfloat16"]
    assert tolerance(replace(SPEC, quantization="4bit")) == TOLERANCES["quantized"]
