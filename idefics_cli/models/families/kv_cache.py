"""KV caches: one that grows without copying all states for each token, and the layers of slots."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

# A full buffer grows by this many tokens, which take 32 MiB in an 8B model.
SPARE_TOKENS = 256


def growing_cache(*, spare_tokens: int = SPARE_TOKENS) -> DynamicCache:
    """Return an empty KV cache that keeps all states, and can be cropped anywhere.

    For each new token, the cache of transformers copies the states of all tokens into new memory.
    On a CPU this takes up to five times as long as the attention to these states.

    The cache is not made from the model's config. A cache that knows the sliding window of the
    model drops the states before the window, and cannot be cropped after that. The results are
    equal, because the attention mask applies the window too.

    Args:
        spare_tokens: A full buffer grows by this many tokens.
    """
    cache = DynamicCache()
    cache.layer_class_to_replicate = partial(GrowingLayer, spare_tokens)
    return cache


def drop_first(cache: Cache, count: int) -> None:
    """Drop the states of the first *count* tokens of all rows."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, count:], layer.values[:, :, count:]


def keep_first(cache: Cache, count: int) -> None:
    """Keep the states of the first *count* tokens of all rows.

    `DynamicCache.crop` takes a length or a number of tokens, depending on the version.
    """
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :count], layer.values[:, :, :count]


def cache_bytes(cache: Cache) -> int:
    """Return the size of the memory that holds the states of *cache*, spare room included."""
    return sum(
        states.untyped_storage().nbytes()
        for layer in cache.layers
        for states in (layer.keys, layer.values)
        if states is not None
    )


def extend(cache: Cache, count: int, *, layers: int, empty: Tensor) -> list[RowStates]:
    """Append *count* states to each layer of a cache of `growing_cache`; the caller writes them.

    Args:
        cache: Empty, or with *layers* layers.
        count: Number of states.
        layers: Number of layers.
        empty: (B, heads, 0, width) no states, in the dtype of the cache.

    Returns:
        The buffers of each layer, with room for all states.
    """
    for index in range(len(cache.layers), layers):
        cache.update(empty, empty, index)
    return [cast("GrowingLayer", layer).extend(count) for layer in cache.layers]


@dataclass(slots=True)
class RowStates:
    """The whole buffers of one layer, (B, heads, capacity, width), contiguous."""

    keys: Tensor
    values: Tensor


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # the class of transformers has no types
    """The states of one layer: `keys` and `values` (B, heads, T, width) are views of buffers.

    To select or repeat rows, transformers assigns other tensors to `keys` and `values`. The next
    update then allocates new buffers. After a crop, the next update overwrites the states that
    were cut off.

    Args:
        spare_tokens: A full buffer grows by this many tokens.

    Attributes:
        buffers: The buffer of the keys and the buffer of the values; None until an update
            allocates them.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, spare_tokens: int = SPARE_TOKENS) -> None:
        super().__init__()
        self._spare_tokens = spare_tokens
        self.buffers: list[Tensor | None] = [None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append states (B, heads, new, width), and return all states."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append(0, self.keys, key_states)
        self.values = self._append(1, self.values, value_states)
        return self.keys, self.values

    def extend(self, count: int) -> RowStates:
        """Append *count* states that the caller writes; they have arbitrary values before.

        An earlier update must have set the other sizes.
        """
        found = []
        for index, old in enumerate((self.keys, self.values)):
            length = old.shape[2] + count
            buffer = self._buffer(index, old, old, length)
            found.append((buffer, buffer[:, :, :length]))
        (keys, self.keys), (values, self.values) = found
        return RowStates(keys, values)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows of *indices*, and free the memory of the others."""
        super().batch_select_indices(indices)
        self.buffers = [None, None]

    def reset(self) -> None:
        """Drop all states and free their memory."""
        self.buffers = [None, None]
        super().reset()

    def _append(self, index: int, old: Tensor, new: Tensor) -> Tensor:
        kept = old.shape[2] if old.dim() == new.dim() else 0
        length = kept + new.shape[2]
        buffer = self._buffer(index, old, new, length)
        buffer[:, :, kept:length] = new
        return buffer[:, :, :length]

    def _buffer(self, index: int, old: Tensor, like: Tensor, length: int) -> Tensor:
        """Return a buffer with room for *length* states that begins with *old*."""
        kept = old.shape[2] if old.dim() == like.dim() else 0
        buffer = self.buffers[index]
        if buffer is None or not _is_start(old, buffer, kept) or length > buffer.shape[2]:
            batch, heads, _, width = like.shape
            buffer = like.new_empty(batch, heads, length + self._spare_tokens, width)
            if kept:
                buffer[:, :, :kept] = old
            self.buffers[index] = buffer
        return buffer


@dataclass(slots=True)
class SlotView:
    """The part of the buffers that one forward uses: the first rows and the first positions.

    Attributes:
        index: (rows,) the row numbers 0, 1, 2…
        positions: (rows,) the position of the new state of each row.
        width: Number of positions that the forward uses.
    """

    index: Tensor
    positions: Tensor
    width: int


class SlotLayer(DynamicLayer):  # type: ignore[misc]  # the class of transformers has no types
    """The states of one layer of slots, (rows, heads, positions, width)."""

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
        """Write the states (rows, heads, 1, width) of one token; return all states of the view."""
        view = self._current_view()
        self.keys[view.index, :, view.positions] = key_states[:, :, 0]
        self.values[view.index, :, view.positions] = value_states[:, :, 0]
        rows = len(view.index)
        return self.keys[:rows, :, : view.width], self.values[:rows, :, : view.width]

    def get_seq_length(self) -> int:
        """Return the number of positions of the view before the newest one."""
        return self._current_view().width - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of positions of the view, and the first position."""
        return self._current_view().width, 0

    def _current_view(self) -> SlotView:
        if self.view is None:
            raise RuntimeError("no view is set for this forward")
        return self.view


def _is_start(old: Tensor, buffer: Tensor, kept: int) -> bool:
    """Return whether *old*, with *kept* tokens, is a view of the start of all rows of *buffer*."""
    return (
        kept > 0
        and old.data_ptr() == buffer.data_ptr()
        and old.stride() == buffer.stride()
        and old.shape[:2] == buffer.shape[:2]
        # A buffer that was made in inference mode can be written only in inference mode, and is not
        # reused outside of it.
        and torch.is_inference(buffer) == torch.is_inference_mode_enabled()
    )
