"""Whether both sides gave the same answers; where numbers are rounded, whether nearly so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from idefics_cli.bench.measure import Round, Tokens
from idefics_cli.core.types import GenerationRequest, LoadSpec

# How much worse than the best a token of ours may be in plain transformers' own logits, in
# standard deviations of these; a token chosen by chance is about 4 worse. With float32 nothing is
# left to tolerance: the tokens must be equal. Weights of 4 bit instead of 16 move the logits of
# random weights by half their standard deviation, and the worst of a hundred tokens by 1.9 to 2.3
# (idefics2-8b cut to 4 layers; our kernel, and torch's).
TOLERANCES = {"bfloat16": 0.25, "float16": 0.1, "quantized": 0.5, "other format": 3.0}
# Answers that are checked token by token where they need not be equal.
_CHECKED = 4

Gap = Callable[[GenerationRequest, Tokens], float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the answers of both sides compare.

    Attributes:
        agrees: Whether they are as alike as they must be.
        equal: Tokens that are equal, from 0 to 1, of all up to the longer answer.
        answers: How many answers were compared.
        tolerance: Largest allowed *gap*; None where all tokens must be equal.
        gap: The most that a token of ours was worse than the best one in plain transformers'
            logits for the same tokens before it, in standard deviations; None if not looked at.
        text: The same in words.
    """

    agrees: bool
    equal: float
    answers: int
    tolerance: float | None
    gap: float | None
    text: str


def tolerance(spec: LoadSpec, *, same_format: bool = True) -> float | None:
    """Return what *spec* allows; None if all tokens must be equal.

    Args:
        spec: What ours runs.
        same_format: Whether plain transformers has its weights in the same format.
    """
    if not same_format:
        return TOLERANCES["other format"]
    if spec.quantization != "none":
        return TOLERANCES["quantized"]
    return TOLERANCES.get(spec.dtype)


def compare(rounds: Iterable[Round], *, allowed: float | None, gap: Gap) -> Agreement:
    """Compare the answers of all *rounds*.

    Args:
        rounds: What both sides answered.
        allowed: See `tolerance`.
        gap: How far a reply is from plain transformers' choice; see `Agreement.gap`. Asked only
            about replies that differ.
    """
    pairs = [
        (request, ours, plain)
        for round_ in rounds
        for request, ours, plain in zip(
            round_.requests, round_.ours.tokens, round_.plain.tokens, strict=True
        )
    ]
    return compare_pairs(pairs, allowed=allowed, gap=gap)


def compare_pairs(
    pairs: Sequence[tuple[GenerationRequest, Tokens, Tokens]], *, allowed: float | None, gap: Gap
) -> Agreement:
    """Compare the two answers to each request; see `compare`."""
    differing = [(request, ours) for request, ours, plain in pairs if ours != plain]
    places = sum(max(len(ours), len(plain)) for _, ours, plain in pairs)
    same = sum(_same(ours, plain) for _, ours, plain in pairs)
    equal = same / places if places else 1.0
    answers = f"{len(pairs)} answer{'' if len(pairs) == 1 else 's'}"
    if not differing:
        return Agreement(True, equal, len(pairs), allowed, None, f"all tokens equal in {answers}")
    worst = max(gap(request, ours) for request, ours in differing[:_CHECKED])
    agrees = allowed is not None and worst <= allowed
    limit = (
        "must be equal in float32"
        if allowed is None
        else f"{allowed:g} standard deviations allowed"
    )
    text = (
        f"{equal:.1%} of tokens equal in {answers}; a token of ours is up to {worst:.3g} "
        f"worse than the best ({limit})"
    )
    return Agreement(agrees, equal, len(pairs), allowed, worst, text)


def _same(ours: Tokens, plain: Tokens) -> int:
    return sum(one == other for one, other in zip(ours, plain, strict=False))
