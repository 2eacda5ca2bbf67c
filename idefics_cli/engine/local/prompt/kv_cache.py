"""A KV cache with room to grow, so that a new token does not copy all that came before it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# Room for so many more tokens whenever there is none left. Of an 8B model that is 32 MiB.
_SPARE_TOKENS = 256


def growing_cache() -> DynamicCache:
    """Return an empty KV cache that keeps every state, can be cropped anywhere, and has room.

    transformers' own copies the states of all tokens for every new one, into fresh memory; on a
    CPU that takes up to five times as long as the attention to them.

    A cache made from a config drops the states that a sliding window has passed, and cannot be
    cropped after that. The attention mask applies the window too, so the results are equal.
    """
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # the library's has no types
    """The states of one layer: `keys` and `values` (B, heads, T, width) are views of buffers.

    Whoever replaces these by other tensors, as the library does to select or repeat rows, makes
    the next update begin new buffers; whoever crops them makes it write over what was cut off.
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._rooms: list[Tensor | None] = [None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append states (B, heads, new, width), and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append(0, self.keys, key_states)
        self.values = self._append(1, self.values, value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows of *indices* only, and free the memory of the others."""
        super().batch_select_indices(indices)
        self._rooms = [None, None]

    def reset(self) -> None:
        """Forget all states and free their memory."""
        self._rooms = [None, None]
        super().reset()

    def _append(self, index: int, old: Tensor, new: Tensor) -> Tensor:
        kept = old.shape[2] if old.dim() == new.dim() else 0
        length = kept + new.shape[2]
        room = self._rooms[index]
        if room is None or not _begins(room, old, kept) or length > room.shape[2]:
            batch, heads, _, width = new.shape
            room = new.new_empty(batch, heads, length + _SPARE_TOKENS, width)
            if kept:
                room[:, :, :kept] = old
            self._rooms[index] = room
        room[:, :, kept:length] = new
        return room[:, :, :length]


def _begins(room: Tensor, old: Tensor, kept: int) -> bool:
    """Tell whether *old* is the beginning of *room*, and nobody's else."""
    return (
        kept > 0
        and old.data_ptr() == room.data_ptr()
        and old.stride() == room.stride()
        and old.shape[:2] == room.shape[:2]
        and torch.is_inference(room) == torch.is_inference_mode_enabled()
    )
