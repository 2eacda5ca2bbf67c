"""The beginning that the prompts of a batch share: its KV states are computed once, for one row.

Prompts of different lengths are padded on the left, so their equal tokens lie in different columns.
Here the shared beginning comes first in every row, then the padding, then the rest: `[shared |
padding | rest]`. The mask hides the padding, and positions count real tokens only, so the results
are those of the usual layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from idefics_cli.engine.local.prompt.prefill import join_prompts
from idefics_cli.models.families.base import Inputs, PrefixKey
from idefics_cli.models.families.kv_cache import growing_cache

FEWEST_SHARED = 32
"""A shorter beginning, such as that of a chat template, is computed in each row."""


def count_shared(rows: Sequence[Sequence[PrefixKey]]) -> int:
    """Return how many keys all *rows* begin with; the last key of each row is not counted.

    The output of the last token gives the first token of the reply, so it is always computed.
    """
    count, first = min(len(row) for row in rows) - 1, rows[0]
    for row in rows[1:]:
        while count and row[:count] != first[:count]:
            # The `while` condition found a difference before *count*, so `next` always finds its
            # position.
            count = next(at for at in range(count) if row[at] != first[at])
    return max(count, 0)


def join_after_shared(
    prompts: Sequence[Inputs], replies: Sequence[Sequence[int]], pad_id: int, shared: int
) -> Inputs:
    """Return prompts that begin with *shared* equal tokens as one batch; see `join_prompts`."""
    if not shared:
        return join_prompts(prompts, replies, pad_id)
    rests = [{name: tensor[:, shared:] for name, tensor in each.items()} for each in prompts]
    rest = join_prompts(rests, replies, pad_id)
    joined = {}
    for name, tensor in rest.items():
        start = tensor.new_zeros(len(prompts), shared, *tensor.shape[2:])
        for row, each in zip(start, prompts, strict=True):
            (given,) = each[name][:, :shared]
            row[tuple(map(slice, given.shape))] = given
        joined[name] = torch.cat([start, tensor], dim=1)
    return joined


def repeat_rows(cache: DynamicCache, rows: int) -> DynamicCache:
    """Return a cache of *rows* rows, each with the states of the only row of *cache*."""
    repeated = growing_cache()
    for index, layer in enumerate(cache.layers):
        states = (each.expand(rows, -1, -1, -1) for each in (layer.keys, layer.values))
        repeated.update(*states, index)
    return repeated
