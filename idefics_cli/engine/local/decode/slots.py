"""The KV states of rows that come and go, each at its own length, in buffers that stay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache

from idefics_cli.models.families.base import Inputs
from idefics_cli.models.families.kv_cache import SlotLayer, SlotView

# Buffers grow by so many tokens at a time; also what the masks of CUDA kernels are aligned to.
_TOKENS = 256


class Slots:
    """Holds the states of up to *rows* prompts with their replies, none of them padded.

    Row *i* has its states at places 0 to `lengths[i]` of row *i* of the buffers. A row that ends
    is overwritten by the last, so that those that go on are always the first of the buffers.

    Args:
        rows: Most rows at a time.

    Attributes:
        cache: For the model's forward, after `preprocess`.
        lengths: Tokens that each row holds.
        extra: Of `Family.next_inputs`, (rows, …); rows that are not in use are anything.
        capacity: Places of the buffers.
        version: Another whenever the buffers are others, so that none is used by its address.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.cache = Cache(layers=[])
        self.lengths: list[int] = []
        self.extra: Inputs = {}
        self.capacity = 0
        self.version = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def clear(self) -> None:
        """Give up all rows; the buffers stay."""
        self.lengths = []
        # Places are masked, but if a model failed with what is no number, no mask hides that.
        for layer in self.cache.layers:
            layer.keys.zero_()
            layer.values.zero_()

    def admit(self, cache: Cache, mask: Tensor, extra: Inputs, *, releases: bool = False) -> None:
        """Take in the rows of a left-padded batch, behind those that are here.

        Args:
            cache: Their states; all of one length.
            mask: (B, T), 1 where a token is real.
            extra: Of `Family.next_inputs`, for them.
            releases: Whether to empty *cache*, layer by layer.
        """
        lengths = [int(length) for length in mask.sum(-1).tolist()]
        first, held = len(self.lengths), cache.get_seq_length()
        if not self.cache.layers:
            self.cache.layers.extend(
                SlotLayer(given.keys[:0, :, :0], given.values[:0, :, :0]) for given in cache.layers
            )
        self._set_capacity(max(lengths) + 1)
        # Layer by layer, so that not all states are in memory twice.
        for layer, given in zip(self.cache.layers, cache.layers, strict=True):
            self._grow(layer)
            for row, length in enumerate(lengths, start=first):
                layer.keys[row, :, :length] = given.keys[row - first, :, held - length :]
                layer.values[row, :, :length] = given.values[row - first, :, held - length :]
            if releases:
                given.reset()
        for name, tensor in extra.items():
            self._admit_extra(name, tensor, first)
        self.lengths += lengths

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with *rows*, in this order; none may come before a row whose place it takes."""
        for target, source in enumerate(rows):
            if target != source:
                length = self.lengths[source]
                for layer in self.cache.layers:
                    layer.keys[target, :, :length] = layer.keys[source, :, :length]
                    layer.values[target, :, :length] = layer.values[source, :, :length]
                for tensor in self.extra.values():
                    tensor[target] = tensor[source]
        self.lengths = [self.lengths[row] for row in rows]

    def reserve(self, length: int) -> None:
        """See to it that rows can have *length* tokens."""
        self._set_capacity(length)
        # One by one, and again after an error between them.
        if any(layer.keys.shape[2] != self.capacity for layer in self.cache.layers):
            for layer in self.cache.layers:
                self._grow(layer)

    def view(self, places: Tensor, width: int) -> Cache:
        """Return the cache for a forward of one token of the first rows.

        Args:
            places: (rows,) where their new states go.
            width: Places that are seen, from the first.
        """
        view = SlotView(torch.arange(len(places), device=places.device), places, width)
        for layer in self.cache.layers:
            layer.view = view
        return self.cache

    def append_to(self, cache: Cache) -> None:
        """Add to *cache*, which holds the first tokens of the only row, what it lacks of it."""
        held, (length,) = cache.get_seq_length(), self.lengths
        for index, layer in enumerate(self.cache.layers):
            new = layer.keys[:1, :, held:length], layer.values[:1, :, held:length]
            cache.update(*new, index)

    def _set_capacity(self, length: int) -> None:
        if length > self.capacity:
            self.capacity = -(-length // _TOKENS) * _TOKENS
            self.version += 1

    def _grow(self, layer: SlotLayer) -> None:
        """Give *layer* buffers of the capacity."""
        for name in ("keys", "values"):
            old = getattr(layer, name)
            if old.shape[2] != self.capacity:
                # Zeros: what no row has written yet is masked, but no number times 0 is none.
                new = old.new_zeros(self.rows, old.shape[1], self.capacity, old.shape[3])
                new[: len(self), :, : old.shape[2]] = old[: len(self)]
                setattr(layer, name, new)

    def _admit_extra(self, name: str, tensor: Tensor, first: int) -> None:
        old = self.extra.get(name)
        widest = tensor.shape[1:] if old is None else map(max, old.shape[1:], tensor.shape[1:])
        shape = (self.rows, *widest)
        if old is None or old.shape != shape:
            # IDEFICS-1's rows have as many images as the most of them; zeros are not seen.
            self.extra[name] = tensor.new_zeros(shape)
            self.version += 1
            if old is not None:
                self.extra[name][tuple(map(slice, old.shape))] = old
        target = self.extra[name][first : first + len(tensor)]
        target.zero_()
        target[tuple(map(slice, tensor.shape))] = tensor


def kept_in_order(ended: Sequence[bool]) -> list[int]:
    """Return the rows that did not end, the last of them in the places of those that did."""
    going = [row for row, has_ended in enumerate(ended) if not has_ended]
    count = len(going)
    late = iter(reversed([row for row in going if row >= count]))
    return [next(late) if ended[row] else row for row in range(count)]
