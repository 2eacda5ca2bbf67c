"""The comparison of the answers of both sides: they must be the same, or nearly the same.

Where a format rounds numbers, two programs can choose different tokens without a mistake. A token
of ours is then rated with the logits of plain transformers. Its gap is the best logit minus the
logit of that token, in standard deviations of all logits at that place. The gap of an answer is the
largest gap of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from idefics_cli.bench.measure import Round, Tokens
from idefics_cli.core.types import GenerationRequest, LoadSpec
from idefics_cli.core.units import counted

# Largest allowed gap of an answer, by the format of the weights; the top of this module defines the
# gap. A random token has a gap of about 4. float32 has no entry, because all its tokens must be
# equal. "other format" applies if the two sides use different formats: with 4-bit against 16-bit
# weights, the worst of a hundred tokens had a gap of 1.9 to 2.3 (random weights in the shape of
# idefics2-8b, cut to 4 layers; our kernel and torch's).
TOLERANCES = {"bfloat16": 0.25, "float16": 0.1, "quantized": 0.5, "other format": 3.0}
# The gap is computed for at most this many differing answers, because each one costs a forward.
_CHECKED = 4

Gap = Callable[[GenerationRequest, Tokens], float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """The comparison of the answers of both sides.

    Attributes:
        agrees: Whether the answers are as similar as they must be.
        equal: Share of equal tokens, 0 to 1. It is a share of the tokens of the longer answer.
        answers: Number of compared answers.
        tolerance: Largest allowed *gap*; None if all tokens must be equal.
        gap: Largest gap of an answer of ours; see the top of this module. None if no gap was
            computed.
        text: This comparison in words.
    """

    agrees: bool
    equal: float
    answers: int
    tolerance: float | None
    gap: float | None
    text: str


def tolerance(spec: LoadSpec, *, same_format: bool = True) -> float | None:
    """Return the largest allowed gap for *spec*; None if all tokens must be equal.

    Args:
        spec: How our side loads the model.
        same_format: Whether both sides have their weights in the same format.
    """
    if not same_format:
        return TOLERANCES["other format"]
    if spec.quantization != "none":
        return TOLERANCES["quantized"]
    return TOLERANCES.get(spec.dtype)


def compare(rounds: Iterable[Round], *, allowed: float | None, gap: Gap) -> Agreement:
    """Compare the answers of all *rounds*.

    Args:
        rounds: Answers of both sides.
        allowed: Largest allowed gap; see `tolerance`.
        gap: Computes the gap of an answer of ours. It is called only for answers that differ.
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
    answers = counted(len(pairs), "answer")
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
        f"{equal:.1%} of tokens equal in {answers}; a token of idefics is up to {worst:.3g} "
        f"worse than the best ({limit})"
    )
    return Agreement(agrees, equal, len(pairs), allowed, worst, text)


def _same(ours: Tokens, plain: Tokens) -> int:
    return sum(one == other for one, other in zip(ours, plain, strict=False))
