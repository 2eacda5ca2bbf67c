"""Decode steps: each runs the newest token of every row through the model."""

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
from idefics_cli.models.loading.loader import Loaded
from idefics_cli.models.planning import decoding


class Step(Protocol):
    """Runs the newest token of every row through the model.

    `PlainStep` needs padded rows of one length. `SlotStep` needs slots.
    """

    @property
    def is_async(self) -> bool:
        """Whether a call returns long before the device has computed the step."""
        ...

    def __call__(self, newest: Tensor) -> Tensor:
        """Run the *newest* token of each row, (rows,) ids on the model's device.

        Returns:
            Logits (rows, V) of the next tokens; the next call may overwrite them.
        """
        ...

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only *rows*, in this order; a row may move only to a lower position."""
        ...


class PlainStep:
    """A step that appends to the cache of the prompts, whose rows stay padded to one length.

    Args:
        model: In eval mode.
        family: The family of the model.
        prompt: The prompts whose states *cache* holds.
        cache: The KV cache of the prompts; each step appends to it.
    """

    def __init__(self, model: Model, family: Family, prompt: Prompt, cache: Cache) -> None:
        self._model = model
        self._family = family
        self._cache = cache
        self._mask = prompt.mask
        self._positions = prompt.inputs["attention_mask"].long().sum(-1, keepdim=True)
        self._extra = family.next_inputs(prompt.inputs, prompt.image_features)

    @property
    def is_async(self) -> bool:
        """False, because the host is busy launching some thousand kernels one by one."""
        return False

    def __call__(self, newest: Tensor) -> Tensor:
        """Run the newest tokens; see `Step`."""
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

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only *rows*, and remove the padding that all of them share; see `Step`."""
        chosen = torch.tensor(rows, device=self._positions.device)
        # The indices are on the CPU, because the layers of a model that is spread over several
        # devices have their states on different devices.
        self._cache.batch_select_indices(torch.tensor(rows))
        self._positions = self._positions[chosen]
        self._extra = {name: tensor[chosen] for name, tensor in self._extra.items()}
        if self._mask is None:
            return
        mask = self._mask[chosen]
        padding = int(mask.long().argmax(-1).min())
        self._mask = None if bool(mask[:, padding:].all()) else mask[:, padding:]
        drop_first(self._cache, padding)


class SlotStep:
    """A step for rows in slots, which have different lengths and may be admitted at any time.

    Args:
        loaded: The model; `slots_problem` returns None for it.
        slots: Holds the rows.
        graphs: Replays forwards instead of launching each kernel; None launches them.
    """

    def __init__(
        self,
        loaded: Loaded,
        slots: Slots,
        *,
        graphs: Graphs | None = None,
    ) -> None:
        self._model = loaded.model
        self._family = loaded.family
        self._text_step = loaded.text_step
        self.slots = slots
        self._graphs = graphs
        text = loaded.model.config.get_text_config()
        self._window = getattr(text, "sliding_window", None)
        self._adds_mask = attention_of(text) == "eager"

    @property
    def is_async(self) -> bool:
        """Whether steps are replayed; each replay is one launch, after which the host is free."""
        return self._graphs is not None and self._graphs.failure is None

    def __call__(self, newest: Tensor) -> Tensor:
        """Run the newest tokens; see `Step`."""
        slots = self.slots
        slots.reserve_tokens(max(slots.lengths) + 1)
        logits = None
        if self._graphs is not None:
            logits = self._graphs.run_step(slots, newest, self._forward)
        if self._text_step is not None and len(newest) <= self._text_step.MOST_ROWS:
            embedded = self._family.embed(self._model, newest[:, None])[:, 0]
            logits = self._text_step(embedded, slots.lengths, slots.cache.layers)
        if logits is None:
            inputs = torch.stack([newest, to_device(slots.lengths, newest.device)])
            has_one_length = len(set(slots.lengths)) == 1
            logits = self._forward(inputs, max(slots.lengths) + 1, has_one_length=has_one_length)
        slots.lengths = [length + 1 for length in slots.lengths]
        return logits

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only *rows*; see `Step`."""
        self.slots.keep_rows(rows)

    def _forward(self, inputs: Tensor, width: int, *, has_one_length: bool = False) -> Tensor:
        """Run ids and positions (2, rows) within *width* positions; return logits (rows, V)."""
        ids, positions = inputs
        named = {name: tensor[: len(ids)] for name, tensor in self.slots.extra.items()}
        named["inputs_embeds"] = self._family.embed(self._model, ids[:, None])
        output = self._family.forward(
            self._model,
            named,
            self.slots.view(positions, width),
            # If all rows have one length, transformers makes the right mask, or finds that it needs
            # none.
            mask=None if has_one_length else self._mask(positions, width),
            positions=positions[:, None],
        )
        return output.logits[:, -1]

    def _mask(self, positions: Tensor, width: int) -> Tensor:
        """Return the mask (rows, 1, 1, width): each token attends to itself and those before it."""
        columns = torch.arange(width, device=positions.device)
        seen = columns <= positions[:, None]
        if self._window is not None:
            seen &= columns > positions[:, None] - self._window
        mask = seen[:, None, None]
        if not self._adds_mask:
            return mask
        dtype = self._model.model.dtype
        # `eager` attention adds its mask to the scores (`eager_mask` in masking_utils.py,
        # transformers 5.23).
        added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return added.masked_fill(~mask, torch.finfo(dtype).min)


def slots_problem(model: Model) -> str | None:
    """Return why *model* cannot decode in slots, whose rows have different lengths, or None."""
    attention = attention_of(model.config.get_text_config())
    return decoding.slots_problem(attention, is_spread=is_spread(model))
