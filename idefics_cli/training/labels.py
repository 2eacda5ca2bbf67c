"""Labels of token ids: they say which tokens of a conversation are learned, for every family.

By the documentation of the models, padding, image and user tokens have the label `IGNORED`. The
answers of the assistant are learned, each with its end token. The positions of the answers depend
on the prompt format, so the caller passes them in; `demo/training/encoding.py` does so for the
built-in model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token without loss: the default `ignore_index` of torch's cross entropy."""


@dataclass(frozen=True, slots=True)
class LabelledTokens:
    """Token ids of one conversation and their labels; both lists have T entries."""

    token_ids: list[int]
    labels: list[int]

    @classmethod
    def learning(cls, token_ids: Sequence[int], answers: Iterable[slice]) -> Self:
        """Return *token_ids* with labels at *answers* only.

        Args:
            token_ids: The whole conversation.
            answers: Slice of each answer, from its first token to its end token, inclusive.
        """
        labels = [IGNORED] * len(token_ids)
        for answer in answers:
            labels[answer] = token_ids[answer]
        return cls(list(token_ids), labels)


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """B conversations of different length, padded on the right to T tokens.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64; 0 on padding.
        labels: (B, T) int64; `IGNORED` on padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def pad_batch(rows: Sequence[LabelledTokens], *, pad_id: int) -> LabelledBatch:
    """Return *rows* as one batch, with *pad_id* on padding."""
    shape = (len(rows), max(len(row.token_ids) for row in rows))
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for index, row in enumerate(rows):
        length = len(row.token_ids)
        input_ids[index, :length] = torch.tensor(row.token_ids)
        attention_mask[index, :length] = 1
        labels[index, :length] = torch.tensor(row.labels)
    return LabelledBatch(input_ids, attention_mask, labels)
