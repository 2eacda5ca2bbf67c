"""Layers of KV caches: with room to grow, so that a new token copies nothing, and of slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
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


def drop_first(cache: Cache, count: int) -> None:
    """Forget the states of the first *count* tokens of all rows."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, count:], layer.values[:, :, count:]


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


@dataclass(slots=True)
class SlotView:
    """What one forward sees of the buffers: the first of the rows and of the places.

    Attributes:
        index: (rows,) 0, 1, 2…
        places: (rows,) where each row's new state goes.
        width: How many places there are.
    """

    index: Tensor
    places: Tensor
    width: int


class SlotLayer(DynamicLayer):  # type: ignore[misc]  # the library's has no types
    """The states of one layer, (rows, heads, places, width)."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.view: SlotView | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the states (rows, heads, 1, width) of one token, and return what is in view."""
        view = self._seen()
        self.keys[view.index, :, view.places] = key_states[:, :, 0]
        self.values[view.index, :, view.places] = value_states[:, :, 0]
        rows = len(view.index)
        return self.keys[:rows, :, : view.width], self.values[:rows, :, : view.width]

    def get_seq_length(self) -> int:
        """Return how many places are before the newest."""
        return self._seen().width - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many places are in view, and the first of them."""
        return self._seen().width, 0

    def _seen(self) -> SlotView:
        if self.view is None:
            raise RuntimeError("no forward was begun")
        return self.view


def _begins(room: Tensor, old: Tensor, kept: int) -> bool:
    """Tell whether *old* is the beginning of *room*, and nobody's else."""
    return (
        kept > 0
        and old.data_ptr() == room.data_ptr()
        and old.stride() == room.stride()
        and old.shape[:2] == room.shape[:2]
        and torch.is_inference(room) == torch.is_inference_mode_enabled()
    )
