"""Attention on a CPU by torch's own kernels, with the heads laid out so that these run fast.

If no faster way is known for a case, transformers' `sdpa` computes it. Figures are medians of
interleaved runs with torch 2.13 on one core of a Xeon with AVX512.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics_cli.models.kernels import patch_attention

# Heads are padded with zeros to a multiple of 16, the number of float32 values in a register.
# A head of SigLIP is 72 wide: padded to 80, it takes 0.74 of the time in float32 and 0.61 in
# bfloat16 (4,900 patches).
_WIDTH = 16
# With fewer queries, the copies for padding cost more time than padding saves.
_MANY_QUERIES = 1024
# `_tiled` computes this number of queries together, so that their scores for 4,900 patches stay in
# the processor's cache. On a processor with bfloat16 instructions (AMD Zen 5), `_tiled` takes 0.45
# of the time of torch's kernel. On others it takes 1.3 to 3 times as long and is not used.
_TILE_QUERIES = 384
# With fewer queries, laying out the keys for compiled code costs more time than it saves.
_SOME_QUERIES = 64
# This attribute of a mask holds the result of `_is_end_of_prompt`.
_MARK = "is_end_of_prompt"

Way = Literal["library", "decode", "end of prompt", "compiled", "tiled", "padded"]


class _Attention(Protocol):
    """An attention function of transformers."""

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        dropout: float,
        scaling: float | None,
        **options: object,
    ) -> tuple[Tensor, None]: ...


@dataclass(frozen=True, slots=True)
class CpuAttention:
    """An attention function for transformers; implements `table.AttentionKernel`.

    Attributes:
        name: The name of this attention in transformers, and in the table of kernels.
        tile_queries: Number of queries that are computed together, for large pictures in
            bfloat16, if code for the processor cannot be compiled or tiles are padded; None pads
            the heads of all large pictures for torch's kernel instead.
        many_queries: A picture with at least this many patches is large. transformers' `sdpa`
            computes smaller ones.
    """

    name: str
    tile_queries: int | None
    many_queries: int = _MANY_QUERIES

    def passes_self_test(self, device: str = "cpu") -> bool:
        """Return True: this attention needs nothing but torch and transformers."""
        return True

    def register(self) -> str:
        """Register this attention in transformers and return its name; idempotent."""
        return register_attention(self.name, self)

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **options: object,
    ) -> tuple[Tensor, None]:
        """Return what transformers' `sdpa` returns, by the fastest way that is known.

        Args:
            module: The attention layer; read for `is_causal`, and passed on to `sdpa`.
            query: (B, heads, queries, width).
            key: (B, KV heads, keys, width).
            value: As *key*.
            attention_mask: (B or 1, 1, queries or 1, keys): either bool, where True means that
                the query attends to the key, or numbers that are added to the scores. With None,
                a query attends to all keys or, in a causal layer, to those up to its own position.
            dropout: Dropout of the scores.
            scaling: Factor of the scores; None is 1 / sqrt(width).
            options: Other arguments of transformers.

        Returns:
            (B, queries, heads, width), and None for the scores.
        """
        way = self.choose_way(module, query, key, attention_mask, dropout=dropout, **options)
        if way == "library":
            return run_sdpa(module, query, key, value, attention_mask, dropout, scaling, options)
        return self._attend(way, query, key, value, attention_mask, scaling), None

    def _attend(
        self,
        way: Way,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float | None,
    ) -> Tensor:
        if way == "decode":
            return _decode(query, key, value, mask, scaling)
        if way == "end of prompt":
            return _end_of_prompt(query, key, value, scaling)
        if way == "compiled":
            scaling = query.shape[3] ** -0.5 if scaling is None else scaling
            return patch_attention.attend(query, key, value, scaling)
        if way == "tiled":
            tile = self.tile_queries or query.shape[2]
            return _tiled(query, key, value, mask, scaling, tile_queries=tile)
        return _padded(query, key, value, mask, scaling)

    def choose_way(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        attention_mask: Tensor | None,
        *,
        dropout: float = 0.0,
        **options: object,
    ) -> Way:
        """Return the fastest exact way for a call with these arguments; see `__call__`."""
        shared = attention_mask is None or attention_mask.shape[1] == 1
        unusual = dropout or not shared or options.get("position_bias") is not None
        if unusual or query.device.type != "cpu" or options.get("cache") is not None:
            return "library"
        if query.shape[2] == 1:
            return "decode"
        if attention_mask is not None and _is_end_of_prompt(attention_mask):
            return "end of prompt"
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        if causal or query.shape[1] != key.shape[1]:
            return "library"
        is_tiled = self.tile_queries is not None and query.dtype == torch.bfloat16
        is_whole = attention_mask is None and query.shape[2] >= _SOME_QUERIES
        if is_tiled and is_whole and patch_attention.fits(query, key):
            return "compiled"
        if query.shape[2] < self.many_queries:
            return "library"
        return "tiled" if is_tiled else "padded"


TILED = CpuAttention("cpu_sdpa_tiled", _TILE_QUERIES)
PADDED = CpuAttention("cpu_sdpa", None)


def register_attention(name: str, attention: Callable[..., tuple[Tensor, None]]) -> str:
    """Register *attention* in transformers as *name*, and return the name; idempotent."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attention)
    # transformers makes masks only for an attention whose name has a mask function.
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def run_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    options: dict[str, object],
) -> tuple[Tensor, None]:
    """Return what transformers' `sdpa` computes; see `CpuAttention.__call__`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    function = cast("_Attention", sdpa_attention_forward)
    return function(module, query, key, value, mask, dropout=dropout, scaling=scaling, **options)


def _decode(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attend from one token: *query* is (B, heads, 1, width).

    All heads that share keys become the rows of one matrix product. transformers instead copies
    the keys for each head or, without a mask, calls a kernel of torch that is slower: 16 times in
    bfloat16, 1.7 times in float32 (32 heads, 8 KV heads, 2,048 keys).
    """
    batch, heads, _, width = query.shape
    grouped = query.reshape(batch, key.shape[1], heads // key.shape[1], width)
    out = functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=mask, scale=scaling
    )
    return out.reshape(batch, 1, heads, value.shape[3])


def _is_end_of_prompt(mask: Tensor) -> bool:
    """Whether *mask* (B, 1, queries, keys) is the causal mask of the last tokens of a prompt.

    False too if the KV cache holds so many of the keys that `_end_of_prompt` would be slower.
    """
    rows, _, queries, keys = mask.shape
    if rows != 1 or mask.dtype != torch.bool or not queries < keys < 2 * queries:
        return False
    known: bool | None = getattr(mask, _MARK, None)
    if known is None:
        expected = torch.ones(queries, keys, dtype=torch.bool).tril_(keys - queries)
        known = torch.equal(mask[0, 0], expected)
        # All layers of a forward get the same mask object, so it is compared only once.
        setattr(mask, _MARK, known)
    return known


def _end_of_prompt(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Attend from the last tokens of a prompt; the KV cache holds the first tokens.

    With `is_causal` instead of a mask, torch's kernel skips the keys after each query. It then
    needs a query for every key, so zeros stand for the queries of the first tokens, and the results
    of these are dropped. This still takes only half the time.
    """
    before = key.shape[2] - query.shape[2]
    out = functional.scaled_dot_product_attention(
        functional.pad(query, (0, 0, before, 0)),
        key,
        value,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[:, :, before:].transpose(1, 2).contiguous()


def _padded(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attend with heads that are padded to a multiple of `_WIDTH`."""
    width = query.shape[3]
    scaling = width**-0.5 if scaling is None else scaling
    if missing := -width % _WIDTH:
        query, key, value = (functional.pad(part, (0, missing)) for part in (query, key, value))
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out[..., :width].transpose(1, 2).contiguous()


def _tiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    *,
    tile_queries: int,
) -> Tensor:
    """Return the attention, computed with matrix products for *tile_queries* queries at a time.

    Each head is computed for itself. All scores go into the same small buffer.
    """
    batch, heads, queries, width = query.shape
    scaling = width**-0.5 if scaling is None else scaling
    out = query.new_empty(batch, queries, heads, value.shape[3])
    buffer = query.new_empty(min(tile_queries, queries), key.shape[2])
    for row in range(batch):
        for head in range(heads):
            scaled = query[row, head] * scaling
            keys, values = key[row, head].t(), value[row, head].contiguous()
            for first in range(0, queries, tile_queries):
                part = slice(first, min(first + tile_queries, queries))
                scores = torch.mm(scaled[part], keys, out=buffer[: part.stop - first])
                if mask is not None:
                    allowed = mask[row % len(mask), 0]
                    _hide(scores, allowed if len(allowed) == 1 else allowed[part])
                torch.softmax(scores, -1, out=scores)
                torch.mm(scores, values, out=out[row, part, head])
    return out


def _hide(scores: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        scores += mask
    else:
        # Hidden scores get the lowest number and not minus infinity, for which softmax would give
        # NaN if a query attends to no key.
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
