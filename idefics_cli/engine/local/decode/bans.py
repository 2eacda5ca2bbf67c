"""Banned words: a token that would complete one must not come next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idefics_cli.engine.local.transfer import to_device


def find_completing(bans: Sequence[Sequence[int]], ids: Sequence[int]) -> list[int]:
    """Return the tokens that must not come after *ids*, each once.

    This does the same as `NoBadWordsLogitsProcessor` of transformers (5.23,
    generation/logits_process.py): a word is looked for in the prompt and the reply together.

    Args:
        bans: Ids of the banned words, each of one token or more.
        ids: Ids of the prompt and the reply so far; the last ones suffice.
    """
    found = {
        last: None
        for *first, last in bans
        if len(first) < len(ids) and (not first or list(ids[-len(first) :]) == first)
    }
    return list(found)


def refuse_completing(
    refused: Tensor, rows: Sequence[tuple[Sequence[Sequence[int]], Sequence[int]]]
) -> Tensor:
    """Set the tokens in *refused* (rows, columns) that complete a banned word, and return it.

    Args:
        refused: True for each token that must not come next.
        rows: The banned words and the ids of each row; see `find_completing`.
    """
    columns = refused.shape[1]
    places = [
        at * columns + token
        for at, (bans, ids) in enumerate(rows)
        for token in find_completing(bans, ids)
        if token < columns
    ]
    if places:
        refused.view(-1).index_fill_(0, to_device(places, refused.device), True)
    return refused


def nothing_refused(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return a mask (rows, columns) that refuses no token."""
    return torch.zeros(rows, columns, dtype=torch.bool, device=device)
