"""Rows of token ids as tensors, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idefics_cli.core.errors import PromptError


def check_token_ids(input_ids: Tensor, rows: int) -> None:
    """Check that the embedding, which has *rows* rows, has a row for every id (B, T).

    Base checkpoints lack rows for the chat tokens that the processor adds to the tokenizer. On
    a GPU such an id causes a device-side assertion, after which the process is unusable.

    Raises:
        PromptError: If an id has no row.
    """
    highest = int(input_ids.max())
    if highest >= rows:
        raise PromptError(
            f"the prompt holds token {highest}, and this model has only {rows} tokens",
            hint="chat tokens such as `<end_of_utterance>` mean nothing to a base model",
        )


def left_padded_positions(attention_mask: Tensor) -> Tensor:
    """Return position ids (B, T) that count from 0 at each row's first real token."""
    positions: Tensor = attention_mask.long().cumsum(-1) - 1
    return positions.masked_fill_(attention_mask == 0, 1)


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask` (B, T) of B prompts."""
    longest = max(map(len, rows))
    ids = [[pad_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
