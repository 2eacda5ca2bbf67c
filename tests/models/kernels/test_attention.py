"""Attention on the CPU gives the results of transformers' attention, in each of its ways."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from idefics_cli.models.kernels.attention import PADDED, TILED, CpuAttention

B, KEYS = 2, 37
Mask = Tensor | None
MASKS = ["none", "bool", "added", "one for all", "one for each query"]


def query_key_value(heads: int, kv_heads: int, queries: int, keys: int, width: int) -> list[Tensor]:
    """Return query, key and value as transposed views, like those from projections."""
    torch.manual_seed(0)
    return [
        torch.randn(B, length, count, width).transpose(1, 2)
        for length, count in ((queries, heads), (keys, kv_heads), (keys, kv_heads))
    ]


def layer(heads: int, kv_heads: int, *, causal: bool) -> SimpleNamespace:
    return SimpleNamespace(num_key_value_groups=heads // kv_heads, is_causal=causal, training=False)


def masks(queries: int, keys: int) -> dict[str, Mask]:
    left_padded = torch.ones(B, 1, queries, keys, dtype=torch.bool)
    left_padded[1, :, :, : keys // 3] = False
    added = torch.zeros(B, 1, queries, keys).masked_fill(~left_padded, -1e9)
    before = torch.arange(keys) <= torch.arange(queries)[:, None] + keys - queries
    return {
        "none": None,
        "bool": left_padded,
        "added": added,
        "one for all": left_padded[1:],
        "one for each query": before.expand(B, 1, queries, keys),
    }


def assert_as_the_library(
    module: SimpleNamespace,
    qkv: list[Tensor],
    mask: Mask,
    attend: CpuAttention = PADDED,
    **options: Any,
) -> None:
    query, key, value = qkv
    theirs, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.2, **options)
    stand_in: Any = module
    ours, scores = attend(stand_in, query, key, value, mask, scaling=0.2, **options)
    assert scores is None
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (6, 6), (6, 1)])
@pytest.mark.parametrize("queries", [1, 5])
def test_text_attention_is_the_librarys(queries: int, heads: int, kv_heads: int, mask: str) -> None:
    qkv = query_key_value(heads, kv_heads, queries, KEYS, 16)
    module = layer(heads, kv_heads, causal=True)
    assert_as_the_library(module, qkv, masks(queries, KEYS)[mask], sliding_window=None)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("width", [12, 16])
@pytest.mark.parametrize("tile", [8, None])
def test_attention_among_many_patches_is_the_librarys(
    tile: int | None, width: int, mask: str
) -> None:
    attend = CpuAttention("test", tile, many_queries=20)
    qkv = query_key_value(3, 3, KEYS, KEYS, width)
    module = layer(3, 3, causal=False)
    assert_as_the_library(module, qkv, masks(KEYS, KEYS)[mask], attend, is_causal=False)

    # Against float32: bfloat16 keeps three digits, and the probabilities are rounded once more.
    exact, _ = sdpa_attention_forward(module, *qkv, masks(KEYS, KEYS)[mask], scaling=0.2)
    query, key, value = (part.to(torch.bfloat16) for part in qkv)
    given = masks(KEYS, KEYS)[mask]
    if given is not None and given.dtype != torch.bool:
        given = given.to(torch.bfloat16)
    stand_in: Any = module
    ours, _ = attend(stand_in, query, key, value, given, scaling=0.2, is_causal=False)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("hidden", ["nothing", "a key", "the first", "a query"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (6, 6)])
@pytest.mark.parametrize("queries", [KEYS - 1, KEYS - 7, KEYS // 2, 3])
def test_the_end_of_a_prompt_sees_what_its_mask_says(
    queries: int, heads: int, kv_heads: int, hidden: str
) -> None:
    qkv = [part[:1] for part in query_key_value(heads, kv_heads, queries, KEYS, 16)]
    mask = torch.ones(queries, KEYS, dtype=torch.bool).tril(KEYS - queries)
    if hidden == "a key":
        mask[:, 2] = False
    elif hidden == "the first":
        # Like a sliding window.
        mask &= ~torch.ones(queries, KEYS, dtype=torch.bool).tril(KEYS - queries - 9)
    elif hidden == "a query":
        mask[1, 1:4] = False
    module = layer(heads, kv_heads, causal=True)
    for _ in range(2):
        assert_as_the_library(module, qkv, mask[None, None])


def test_each_way_is_taken_where_it_is_fastest() -> None:
    tiled = replace(TILED, many_queries=20)

    def way(
        heads: int,
        kv_heads: int,
        queries: int,
        *,
        causal: bool,
        dtype: torch.dtype = torch.float32,
        mask: Mask = None,
        **options: object,
    ) -> str:
        query, key, _ = (
            part.to(dtype) for part in query_key_value(heads, kv_heads, queries, KEYS, 16)
        )
        module = cast("nn.Module", layer(heads, kv_heads, causal=causal))
        return tiled.choose_way(module, query, key, mask, **options)  # type: ignore[arg-type] # mixed options

    def before(queries: int) -> Tensor:
        return torch.ones(1, 1, queries, KEYS, dtype=torch.bool).tril(KEYS - queries)

    assert way(4, 2, 1, causal=True) == "decode"
    assert way(4, 4, KEYS, causal=False) == "padded"
    assert way(4, 4, KEYS, causal=False, dtype=torch.bfloat16) == "tiled"
    assert way(4, 4, 10, causal=False) == "library"
    assert way(4, 4, KEYS, causal=False, dtype=torch.bfloat16, mask=before(KEYS)) == "tiled"
    assert way(4, 4, KEYS, causal=True) == "library"
    assert way(4, 2, KEYS, causal=False) == "library"
    assert way(4, 2, 1, causal=True, position_bias=torch.zeros(B, 4, 1, KEYS)) == "library"
    assert way(4, 2, 1, causal=True, dropout=0.5) == "library"

    assert way(4, 2, KEYS - 5, causal=True, mask=before(KEYS - 5)) == "end of prompt"
    # Results for more than half of the queries would be dropped.
    assert way(4, 2, KEYS // 2, causal=True, mask=before(KEYS // 2)) == "library"
