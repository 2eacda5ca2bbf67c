"""Attention on a CPU: torch's own kernels, with the heads laid out so that they run fast.

transformers' `sdpa` is the fallback for all that is not known here to be faster. Figures are of
torch 2.13 on one core of a Xeon with AVX512, medians of interleaved runs.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

NAME = "cpu_sdpa"

# A head of SigLIP is 72 wide. Filled up with zeros to the width of a register, which changes
# nothing, its kernel takes 0.74 of the time in float32 and 0.61 in bfloat16 (4,900 patches;
# the copies cost more than that below a thousand).
_WIDTH = 16
_LONG = 1024
# Queries that are done together where bfloat16 is multiplied natively: scores of 4,900 patches
# then stay in the cache. 0.45 of the kernel's time there (AMD Zen 5), 1.3 to 3 times elsewhere.
_TILE = 384
# What was found out about a mask, with which it is marked.
_NOTE = "lies_at_the_end"


class _Attention(Protocol):
    """As transformers calls an attention function."""

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


def register() -> str:
    """Make the attention known to transformers, and return its name; idempotent."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, cpu_attention)
    # Without a mask function of its own it would get no masks at all.
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def cpu_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """Return what transformers' `sdpa` does, by the fastest way that is known.

    Args:
        module: The attention layer, for the library's function.
        query: (B, heads, queries, width).
        key: (B, KV heads, keys, width).
        value: As *key*.
        attention_mask: (B or 1, 1, queries or 1, keys), bool (true: seen) or added; None sees all,
            or what is before, as the layer says.
        dropout: Of the scores.
        scaling: Of the scores; None is the root of the width.
        options: What else the library hands over.

    Returns:
        (B, queries, heads, width), and None for the scores.
    """
    shared = attention_mask is None or attention_mask.shape[1] == 1
    strange = dropout or not shared or options.get("position_bias") is not None
    if strange or query.device.type != "cpu" or options.get("cache") is not None:
        return _library(module, query, key, value, attention_mask, dropout, scaling, options)
    if query.shape[2] == 1:
        return _decode(query, key, value, attention_mask, scaling), None
    if attention_mask is not None and _lies_at_the_end(attention_mask):
        return _end_of_prompt(query, key, value, scaling), None
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if causal or query.shape[1] != key.shape[1] or query.shape[2] < _LONG:
        return _library(module, query, key, value, attention_mask, dropout, scaling, options)
    if query.dtype == torch.bfloat16 and has_native_bf16():
        return _tiled(query, key, value, attention_mask, scaling), None
    return _filled(query, key, value, attention_mask, scaling), None


def has_native_bf16() -> bool:
    """Tell whether the processor multiplies bfloat16 without widening it."""
    # Private, so absent is fine.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return in which dtype the processor multiplies many rows of *dtype* fastest."""
    if dtype == torch.float32 or (dtype == torch.bfloat16 and has_native_bf16()):
        return dtype
    # 16 bit are imitated, in up to 4 times the time.
    return torch.float32


def _decode(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attend from one token, (B, heads, 1, width): heads that share keys are rows of one product.

    transformers repeats the keys, or, without a mask, takes a kernel of torch that is 16 times
    slower in bfloat16 and 1.7 times in float32 (32 heads of 8, 2,048 keys).
    """
    batch, heads, _, width = query.shape
    grouped = query.reshape(batch, key.shape[1], heads // key.shape[1], width)
    out = functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=mask, scale=scaling
    )
    return out.reshape(batch, 1, heads, value.shape[3])


def _lies_at_the_end(mask: Tensor) -> bool:
    """Tell whether by *mask* (B, 1, queries, keys) each query sees what is before it, and itself.

    And whether so few of the keys are before all queries that `_end_of_prompt` is faster.
    """
    rows, _, queries, keys = mask.shape
    if rows != 1 or mask.dtype != torch.bool or not queries < keys < 2 * queries:
        return False
    known: bool | None = getattr(mask, _NOTE, None)
    if known is None:
        expected = torch.ones(queries, keys, dtype=torch.bool).tril_(keys - queries)
        known = torch.equal(mask[0, 0], expected)
        # All layers of a forward get the same mask.
        setattr(mask, _NOTE, known)
    return known


def _end_of_prompt(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Attend from the last of a prompt's tokens, where a cache holds the first.

    Without a mask the kernel leaves out what is not seen: half the time, even with queries
    for the first tokens, which nobody asked for.
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


def _filled(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attend with heads of a width that suits the registers."""
    width = query.shape[3]
    scaling = width**-0.5 if scaling is None else scaling
    if missing := -width % _WIDTH:
        query, key, value = (functional.pad(states, (0, missing)) for states in (query, key, value))
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out[..., :width].transpose(1, 2).contiguous()


def _tiled(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attend head by head, some queries at a time, as matrix products into one buffer."""
    batch, heads, queries, width = query.shape
    scaling = width**-0.5 if scaling is None else scaling
    out = query.new_empty(batch, queries, heads, value.shape[3])
    buffer = query.new_empty(min(_TILE, queries), key.shape[2])
    for row in range(batch):
        for head in range(heads):
            scaled = query[row, head] * scaling
            keys, values = key[row, head].t(), value[row, head].contiguous()
            for first in range(0, queries, _TILE):
                part = slice(first, min(first + _TILE, queries))
                scores = torch.mm(scaled[part], keys, out=buffer[: part.stop - first])
                if mask is not None:
                    seen = mask[row % len(mask), 0]
                    _hide(scores, seen if len(seen) == 1 else seen[part])
                torch.softmax(scores, -1, out=scores)
                torch.mm(scores, values, out=out[row, part, head])
    return out


def _hide(scores: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        scores += mask
    else:
        # Not minus infinity: a row that sees nothing would become no numbers.
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)


def _library(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    options: dict[str, object],
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    function = cast("_Attention", sdpa_attention_forward)
    return function(module, query, key, value, mask, dropout=dropout, scaling=scaling, **options)
