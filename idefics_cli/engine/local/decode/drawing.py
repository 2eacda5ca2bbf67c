"""Random tokens: temperature, top-k and top-p, for one row or for all rows together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.penalties import bounded
from idefics_cli.engine.local.transfer import stacked_on

# In float32, the sums of the probabilities of a large vocabulary would lose the small ones.
_WIDE = torch.float64


def draw_token(scores: Tensor, row: BatchRow) -> int:
    """Draw a token from *scores* (V,), after temperature, top-k and top-p in this order."""
    sampling = row.sampling
    # The highest score becomes 0, so that no temperature can make the scores overflow.
    scores = (scores - scores.max()) / bounded(sampling.temperature)
    if sampling.top_k:
        kept = scores.topk(min(sampling.top_k, scores.numel())).values
        scores = scores.masked_fill(scores < kept[-1], float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = scores.sort(descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        # The most likely token always stays, even if top-p is so small that it is 0 in float32.
        outside[0] = False
        scores = scores.masked_fill(
            torch.zeros_like(outside).scatter(0, order, outside), float("-inf")
        )
    return int(_pick(scores.softmax(-1)[None], _next_draw(row)[None]))


def draws_together(scores: Tensor) -> bool:
    """Return whether `draw_tokens` is faster than `draw_token` for each row of *scores*.

    On a GPU, every row that the host draws is a wait for the device and a sort on one core. On a
    CPU the rows have to be sorted one by one anyway.
    """
    return scores.is_cuda


def draw_tokens(scores: Tensor, rows: Sequence[BatchRow]) -> Tensor:
    """Draw a token for each of B *rows* from *scores* (B, V), as `draw_token` does for one.

    The generators of the rows draw on the host, so a seed gives the same tokens on every device,
    except for rounding, and for equal scores at the edge of top-p. The host never waits for the
    device.

    Returns:
        Ids (B,) on the device of *scores*.
    """
    device, size = scores.device, scores.shape[-1]
    draws = stacked_on([_next_draw(row) for row in rows], device)
    settings = torch.tensor([_numbers(row.sampling, size) for row in rows])
    temperature, top_k, top_p = stacked_on(settings.t().unbind(), device)[..., None]
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature
    if any(row.sampling.top_k or row.sampling.top_p < 1.0 for row in rows):
        # The sort is stable, so that equal scores have one order in every batch.
        ordered, order = scores.sort(descending=True, stable=True)
        ordered = ordered.masked_fill(ordered < ordered.gather(-1, top_k.long() - 1), -math.inf)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p
        outside[:, 0] = False
        outside |= ordered.isneginf()
        outside = torch.zeros_like(outside).scatter(-1, order, outside)
        scores = scores.masked_fill(outside, -math.inf)
    return _pick(scores.softmax(-1), draws)


def _pick(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Return the ids (B,) at which the sums of *probabilities* (B, V) pass *draws* (B,).

    This is the inversion method. `torch.multinomial` needs a random number for each of V tokens
    instead, which takes as long as many a decode step: 2 ms for 49,280 tokens (AMD Zen 3).
    """
    sums = probabilities.cumsum(-1, dtype=_WIDE)
    # A draw is below 1, so the id is one whose probability is not 0.
    return torch.searchsorted(sums, draws[:, None] * sums[:, -1:], right=True)[:, 0]


def _numbers(sampling: Sampling, size: int) -> tuple[float, float, float]:
    """Return temperature, top-k and top-p for a vocabulary of *size*; no limit is a large one."""
    top_k = min(sampling.top_k or size, size)
    return (
        bounded(sampling.temperature),
        float(top_k),
        sampling.top_p if sampling.top_p < 1.0 else math.inf,
    )


def _next_draw(row: BatchRow) -> Tensor:
    """Return the random number () from 0 to below 1 for the next token of *row*.

    It stays with the row until the token is appended. So a reply that an error takes back draws the
    same token again.
    """
    if row.draw is None:
        row.draw = torch.rand((), dtype=_WIDE, generator=row.generator)
    return row.draw
