"""One token of every row through the model: how a reply goes on after its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import Cache

from idefics_cli.engine.local.decode.graphs import Graphs
from idefics_cli.engine.local.decode.slots import Slots
from idefics_cli.engine.local.prompt.prefill import Prompt
from idefics_cli.engine.local.transfer import to_device
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.internals import attention_of, is_spread
from idefics_cli.models.families.kv_cache import drop_first
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.planning import decoding


class Step(Protocol):
    """Runs one token of every row."""

    @property
    def is_quick(self) -> bool:
        """Whether the host is done with a step long before the device is."""
        ...

    def __call__(self, newest: Tensor) -> Tensor:
        """Run the *newest* token of each row, (rows,) ids where the model is.

        Returns:
            Logits (rows, V) of the next, which the next call may overwrite.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with *rows* only, in this order; none comes before one whose place it takes."""
        ...

    def close(self) -> None:
        """Leave the cache of a single row as if its reply had been part of the prompt."""
        ...


class PlainStep:
    """Goes on in the cache of the prompt, which grows; its rows stay padded to each other.

    Args:
        model: In eval mode.
        family: Of the model.
        prompt: What *cache* holds.
        cache: Of the prompt; grows.
    """

    def __init__(self, model: Model, family: Family, prompt: Prompt, cache: Cache) -> None:
        self._model = model
        self._family = family
        self._cache = cache
        self._mask = prompt.mask
        self._positions = prompt.inputs["attention_mask"].long().sum(-1, keepdim=True)
        self._extra = family.next_inputs(prompt.inputs, prompt.image_features)

    @property
    def is_quick(self) -> bool:
        """See `Step`; it launches a thousand kernels one by one."""
        return False

    def __call__(self, newest: Tensor) -> Tensor:
        """See `Step`."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(newest), 1)], dim=1)
        output = self._family.forward(
            self._model,
            {**self._extra, "input_ids": newest[:, None]},
            self._cache,
            mask=self._mask,
            positions=self._positions,
        )
        self._positions = self._positions + 1
        return output.logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """See `Step`; what pads all that remain goes too."""
        chosen = torch.tensor(rows, device=self._positions.device)
        self._cache.batch_select_indices(chosen)
        self._positions = self._positions[chosen]
        self._extra = {name: tensor[chosen] for name, tensor in self._extra.items()}
        if self._mask is None:
            return
        mask = self._mask[chosen]
        padding = int(mask.long().argmax(-1).min())
        self._mask = None if bool(mask[:, padding:].all()) else mask[:, padding:]
        drop_first(self._cache, padding)

    def close(self) -> None:
        """See `Step`; it is so."""


class SlotStep:
    """Goes on in slots, where rows have their own lengths and may come at any time.

    Args:
        model: In eval mode, with none of `slots_problem`.
        family: Of the model.
        slots: What holds the rows.
        graphs: Plays forwards back instead of launching each of their kernels; None does not.
        source: The cache of a single prompt, to be brought up to date by `close`.
    """

    def __init__(
        self,
        model: Model,
        family: Family,
        slots: Slots,
        *,
        graphs: Graphs | None = None,
        source: Cache | None = None,
    ) -> None:
        self._model = model
        self._family = family
        self.slots = slots
        self._graphs = graphs
        self._source = source
        text = model.config.get_text_config()
        self._window = getattr(text, "sliding_window", None)
        self._adds_mask = attention_of(text) == "eager"

    @property
    def is_quick(self) -> bool:
        """See `Step`."""
        return self._graphs is not None and self._graphs.failure is None

    def __call__(self, newest: Tensor) -> Tensor:
        """See `Step`."""
        slots = self.slots
        slots.reserve(max(slots.lengths) + 1)
        logits = None
        if self._graphs is not None:
            logits = self._graphs.play(slots, newest, self._forward)
        if logits is None:
            inputs = torch.stack([newest, to_device(slots.lengths, newest.device)])
            logits = self._forward(inputs, max(slots.lengths) + 1, is_even=self._is_even())
        slots.lengths = [length + 1 for length in slots.lengths]
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """See `Step`."""
        self.slots.keep(rows)

    def close(self) -> None:
        """See `Step`."""
        if self._source is not None:
            self.slots.append_to(self._source)

    def _is_even(self) -> bool:
        return len(set(self.slots.lengths)) == 1

    def _forward(self, inputs: Tensor, width: int, *, is_even: bool = False) -> Tensor:
        """Run ids and places (2, rows) within the first *width* places; logits (rows, V)."""
        ids, places = inputs
        named = {name: tensor[: len(ids)] for name, tensor in self.slots.extra.items()}
        named["inputs_embeds"] = self._family.embed(self._model, ids[:, None])
        output = self._family.forward(
            self._model,
            named,
            self.slots.view(places, width),
            # The library's own mask is right, and often none, where all rows are of one length.
            mask=None if is_even else self._mask(places, width),
            positions=places[:, None],
        )
        return output.logits[:, -1]

    def _mask(self, places: Tensor, width: int) -> Tensor:
        """Return the mask (rows, 1, 1, width), in which each row sees itself and what it had."""
        columns = torch.arange(width, device=places.device)
        seen = columns <= places[:, None]
        if self._window is not None:
            seen &= columns > places[:, None] - self._window
        mask = seen[:, None, None]
        if not self._adds_mask:
            return mask
        dtype = self._model.model.dtype
        # As `eager_mask` of transformers 5.23, masking_utils.py.
        added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return added.masked_fill(~mask, torch.finfo(dtype).min)


def slots_problem(model: Model) -> str | None:
    """Return why rows of *model* cannot have their own lengths, or None."""
    attention = attention_of(model.config.get_text_config())
    return decoding.slots_problem(attention, is_spread=is_spread(model))
