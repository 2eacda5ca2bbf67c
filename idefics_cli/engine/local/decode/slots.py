"""Slots: buffers for the KV states of rows that have different lengths, and that come and go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from idefics_cli.models.families.base import Inputs
from idefics_cli.models.families.kv_cache import SlotLayer, SlotView, growing_cache

# Buffers grow in steps of this many tokens. CUDA kernels align their masks to the same number.
BLOCK_TOKENS = 256


class Slots:
    """Holds the KV states of up to *rows* prompts with their replies, without padding.

    Row *i* of a buffer holds the states of row *i* at the positions below `lengths[i]`. When a row
    ends, the last row moves into its slot, so that the active rows are always the first ones.

    Args:
        rows: Maximum number of rows at a time; `resize` changes it.
        block_tokens: The buffers grow in steps of this many tokens.
        doubles: Whether the buffers at least double when they grow, up to *most_tokens*. Each size
            of the buffers needs new CUDA graphs.

    Attributes:
        cache: The KV cache for a forward of the model, after `view`.
        lengths: Number of tokens of each row.
        extra: The result of `Family.next_inputs`, (rows, …); unused rows hold arbitrary values.
        capacity: Number of positions of the buffers.
        most_tokens: Maximum length that a row can reach, as far as it is known.
        version: A number that changes when the buffers are replaced. A CUDA graph of an older
            version would read freed addresses.
    """

    def __init__(
        self, rows: int, *, block_tokens: int = BLOCK_TOKENS, doubles: bool = False
    ) -> None:
        self.rows = rows
        self.cache = Cache(layers=[])
        self.lengths: list[int] = []
        self.extra: Inputs = {}
        self.capacity = self.most_tokens = 0
        self.version = 0
        self._block_tokens = block_tokens
        self._doubles = doubles

    def __len__(self) -> int:
        return len(self.lengths)

    def clear(self) -> None:
        """Remove all rows; the buffers stay."""
        self.lengths = []
        # Masked positions must not hold NaN from an earlier run, because NaN * 0 is NaN.
        for layer in self.cache.layers:
            layer.keys.zero_()
            layer.values.zero_()

    def admit_rows(
        self,
        cache: Cache,
        lengths: Sequence[int],
        extra: Inputs,
        *,
        shared: int = 0,
        releases: bool = False,
    ) -> None:
        """Append the rows of a left-padded batch.

        Args:
            cache: The states of the rows, padded to one length.
            lengths: Number of tokens of each row.
            extra: The result of `Family.next_inputs` for the rows.
            shared: Number of tokens that precede the padding in every row; see `shared.py`.
            releases: Whether to empty *cache*, layer by layer.
        """
        first, held = len(self.lengths), cache.get_seq_length()
        if not self.cache.layers:
            self.cache.layers.extend(
                SlotLayer(given.keys[:0, :, :0], given.values[:0, :, :0]) for given in cache.layers
            )
        self._set_capacity(max(lengths) + 1)
        # The states are copied layer by layer, so that memory never holds all of them twice.
        for layer, given in zip(self.cache.layers, cache.layers, strict=True):
            self._fit(layer)
            for row, length in enumerate(lengths, start=first):
                rest = held - (length - shared)
                for states, found in (layer.keys, given.keys), (layer.values, given.values):
                    if shared:
                        states[row, :, :shared] = found[row - first, :, :shared]
                    states[row, :, shared:length] = found[row - first, :, rest:]
            if releases:
                given.reset()
        for name, tensor in extra.items():
            self._admit_extra(name, tensor, first)
        self.lengths += lengths

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only *rows*, in this order; `rows_to_keep` returns a suitable order.

        A row may move only to a lower position, because moves run in order and must not overwrite
        a row that moves later.
        """
        for target, source in enumerate(rows):
            if target != source:
                length = self.lengths[source]
                for layer in self.cache.layers:
                    layer.keys[target, :, :length] = layer.keys[source, :, :length]
                    layer.values[target, :, :length] = layer.values[source, :, :length]
                for tensor in self.extra.values():
                    tensor[target] = tensor[source]
        self.lengths = [self.lengths[row] for row in rows]

    def reserve_tokens(self, length: int) -> None:
        """Grow the buffers to at least *length* positions."""
        self._set_capacity(length)
        self._fit_layers()

    def resize(self, rows: int, capacity: int) -> None:
        """Give the buffers *rows* rows of *capacity* positions, enough for what they hold."""
        if (rows, capacity) == (self.rows, self.capacity):
            return
        self.rows, self.capacity = rows, capacity
        self.version += 1
        self._fit_layers()
        for name, tensor in self.extra.items():
            resized = tensor.new_zeros(rows, *tensor.shape[1:])
            resized[: len(self)] = tensor[: len(self)]
            self.extra[name] = resized

    def copy_row(self, row: int, length: int) -> DynamicCache:
        """Return a copy of the first *length* states of *row*, as a cache of one row."""
        copy = growing_cache()
        for index, layer in enumerate(self.cache.layers):
            states = (t[row : row + 1, :, :length] for t in (layer.keys, layer.values))
            copy.update(*states, index)
        return copy

    def view(self, positions: Tensor, width: int) -> Cache:
        """Return the cache for a forward of one token of the first rows.

        Args:
            positions: (rows,) the position of the new state of each row.
            width: The forward attends to the first *width* positions.
        """
        view = SlotView(torch.arange(len(positions), device=positions.device), positions, width)
        for layer in self.cache.layers:
            layer.view = view
        return self.cache

    def _set_capacity(self, length: int) -> None:
        if length > self.capacity:
            if self._doubles:
                length = max(length, min(2 * self.capacity, self.most_tokens))
            self.capacity = -(-length // self._block_tokens) * self._block_tokens
            self.version += 1

    def _fit_layers(self) -> None:
        # After an error between two layers, their sizes differ. So every layer is checked.
        for layer in self.cache.layers:
            self._fit(layer)

    def _fit(self, layer: SlotLayer) -> None:
        """Give *layer* buffers of the current size."""
        for name in ("keys", "values"):
            old = getattr(layer, name)
            if (old.shape[0], old.shape[2]) != (self.rows, self.capacity):
                # The new buffer is filled with zeros. Masked positions must not hold NaN, because
                # attention multiplies them by 0, and NaN * 0 is NaN.
                new = old.new_zeros(self.rows, old.shape[1], self.capacity, old.shape[3])
                kept = min(old.shape[2], self.capacity)
                new[: len(self), :, :kept] = old[: len(self), :, :kept]
                setattr(layer, name, new)

    def _admit_extra(self, name: str, tensor: Tensor, first: int) -> None:
        old = self.extra.get(name)
        widest = tensor.shape[1:] if old is None else map(max, old.shape[1:], tensor.shape[1:])
        shape = (self.rows, *widest)
        if old is None or old.shape != shape:
            # In IDEFICS-1, all rows are as wide as the row with the most images. The unused
            # positions of the other rows are 0, which means masked.
            self.extra[name] = tensor.new_zeros(shape)
            self.version += 1
            if old is not None:
                self.extra[name][tuple(map(slice, old.shape))] = old
        target = self.extra[name][first : first + len(tensor)]
        target.zero_()
        target[tuple(map(slice, tensor.shape))] = tensor


def rows_to_keep(ended: Sequence[bool]) -> list[int]:
    """Return the rows that did not end, in the order of their new slots.

    The last of these rows move into the slots of rows that ended; the others stay in place.
    """
    active = [row for row, has_ended in enumerate(ended) if not has_ended]
    count = len(active)
    late = iter(reversed([row for row in active if row >= count]))
    return [next(late) if ended[row] else row for row in range(count)]
