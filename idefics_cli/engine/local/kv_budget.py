"""The memory for KV states: what may start, and how many rows the buffers get.

The KV states of a token are its keys and values in the attention layers, which a KV cache keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.hardware.system import read_memory
from idefics_cli.models.families.internals import is_spread, text_layer_devices
from idefics_cli.models.families.kv_cache import SPARE_TOKENS
from idefics_cli.models.loading.loader import Loaded

# The share of the free memory that KV states may take. The rest is for the activations of a
# forward, whose peak is not known exactly.
_FREE_SHARE = 0.8
# Kept conversations may take this share of the budget; the rest is for running requests.
_PREFIX_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class KvLoad:
    """The requests that run or are to start.

    Attributes:
        active: For each active reply, the maximum length of its prompt and reply, in tokens.
        prompts: For each group in the prefill: number of rows, and tokens of its longest prompt.
        starting: For each reply of these groups, the maximum length, in tokens.
    """

    active: Sequence[int] = ()
    prompts: Sequence[tuple[int, int]] = ()
    starting: Sequence[int] = ()

    @property
    def rows(self) -> int:
        """Number of replies."""
        return len(self.active) + len(self.starting)

    @property
    def longest(self) -> int:
        """Maximum length of a prompt and its reply, in tokens."""
        return max((*self.active, *self.starting), default=0)


@dataclass(frozen=True, slots=True)
class BufferSize:
    """How large the buffers of slots should be.

    Attributes:
        rows: Number of rows.
        capacity: Number of positions of each row that are needed.
        most_states: Maximum number of states of all rows together.
    """

    rows: int
    capacity: int
    most_states: int


class KvBudget:
    """Counts the bytes of KV states before they exist.

    All rows of the buffers have the capacity of the longest row. So one long conversation makes
    every row long, and fewer rows fit.

    Args:
        loaded: The model.
        tuning: Its field `kv_bytes` is the budget. If that is None, the budget is most of the
            memory that is free now.
        uses_slots: Whether each row has its own length; else rows are padded.

    Attributes:
        max_bytes: The budget, in bytes.
        bytes_per_token: Bytes of the states of one token of one row.
    """

    def __init__(self, loaded: Loaded, tuning: Tuning, *, uses_slots: bool) -> None:
        self.max_bytes = tuning.kv_bytes or int(_free_bytes(loaded) * _FREE_SHARE)
        self.bytes_per_token = _bytes_per_token(loaded)
        self._block_tokens = tuning.block_tokens
        self._uses_slots = uses_slots

    @property
    def prefix_bytes(self) -> int:
        """Maximum number of bytes of kept conversations."""
        return int(self.max_bytes * _PREFIX_SHARE)

    def needed_bytes(self, load: KvLoad) -> int:
        """Return the most bytes that *load* takes at any time."""
        longest = self._capacity(load) if self._uses_slots else load.longest + SPARE_TOKENS
        return (_prompt_states(load) + load.rows * longest) * self.bytes_per_token

    def fits(self, load: KvLoad) -> bool:
        """Return whether *load* never takes more than the budget."""
        return self.needed_bytes(load) <= self.max_bytes

    def left_bytes(self, load: KvLoad, held_bytes: int) -> int:
        """Return the bytes that are left for kept conversations.

        Args:
            load: All requests that run.
            held_bytes: Bytes of the buffers of active rows, which may be larger than needed.
        """
        prompts = _prompt_states(load) * self.bytes_per_token
        return self.max_bytes - max(self.needed_bytes(load), prompts + held_bytes)

    def buffer_size(self, load: KvLoad, wanted: int) -> BufferSize:
        """Return the size of the buffers, with spare rows so that not every request enlarges them.

        Args:
            load: All requests that run or start.
            wanted: Number of rows that will soon be used, if the budget allows them.
        """
        capacity = self._capacity(load)
        most_states = self.max_bytes // self.bytes_per_token - _prompt_states(load)
        rows = max(load.rows, min(wanted, most_states // capacity))
        return BufferSize(rows, capacity, most_states)

    def _capacity(self, load: KvLoad) -> int:
        """Return the number of positions of a row, a multiple of a block.

        There is room for the longest reply of *load* and one more token.
        """
        return -(-(load.longest + 1) // self._block_tokens) * self._block_tokens


def _prompt_states(load: KvLoad) -> int:
    """Return the number of states for which the caches of the prefill have room."""
    return sum(rows * (tokens + SPARE_TOKENS) for rows, tokens in load.prompts)


def _bytes_per_token(loaded: Loaded) -> int:
    text = loaded.model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(text.num_hidden_layers * 2 * heads * width * loaded.model.model.dtype.itemsize)


def _free_bytes(loaded: Loaded) -> int:
    """Return the number of bytes that KV states could take now.

    If the model is spread over several cards, each card holds the states of its own layers.
    """
    model = loaded.model
    if model.device.type != "cuda":
        return read_memory()[1]
    devices = [model.device]
    if is_spread(model):
        devices = text_layer_devices(model, loaded.family.spec.unquantized)
    layers = Counter(devices)
    return min(
        int(torch.cuda.mem_get_info(card)[0]) * layers.total() // count
        for card, count in layers.items()
    )
