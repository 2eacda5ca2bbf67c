"""Penalties: lower scores for tokens that the text already has."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.transfer import to_device

# Temperatures and penalties are limited to this range, and penalized scores to -`_MOST` to `_MOST`,
# so that float32 does not overflow. Values beyond these limits would give the same tokens.
_LEAST, _MOST = 1e-30, 1e30


def bounded(value: float) -> float:
    """Return *value*, or the nearest limit of the range in which float32 does not overflow."""
    return min(max(value, _LEAST), _MOST)


def penalize(scores: Tensor, row: BatchRow) -> None:
    """Change the *scores* (V,) of the tokens that *row* already has, as its sampling says."""
    sampling = row.sampling
    if sampling.repetition_penalty != 1.0:
        _penalize_repetition(scores, row)
    if row.tokens and (sampling.presence_penalty or sampling.frequency_penalty):
        _subtract_penalties(scores, row)


def _penalize_repetition(scores: Tensor, row: BatchRow) -> None:
    """Lower the scores of all tokens of prompt and reply (arXiv:1909.05858).

    Positive scores are divided by the penalty, negative scores are multiplied by it.
    """
    seen = to_device(sorted({*row.prompt, *row.tokens}), scores.device)
    penalty = bounded(row.sampling.repetition_penalty)
    values = scores[seen]
    values = torch.where(values < 0, values * penalty, values / penalty)
    scores[seen] = values.clamp(-_MOST, _MOST)


def _subtract_penalties(scores: Tensor, row: BatchRow) -> None:
    """Lower the scores of the tokens of the reply, as OpenAI's API defines its two penalties.

    A token that was generated *n* times loses `presence_penalty + n * frequency_penalty`.
    """
    counts = Counter(row.tokens)
    seen = to_device(list(counts), scores.device)
    times = to_device(list(counts.values()), scores.device).to(scores.dtype)
    sampling = row.sampling
    scores[seen] -= sampling.presence_penalty + times * sampling.frequency_penalty
