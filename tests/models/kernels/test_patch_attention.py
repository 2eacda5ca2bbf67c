"""Compiled attention among patches: as float32, for all shapes, layouts and numbers of threads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics_cli.models.kernels import patch_attention
from idefics_cli.models.kernels.attention import TILED, Way
from idefics_cli.models.kernels.compiler import compiled_for
from idefics_cli.models.kernels.openmp import torch_threads
from tests.support.kernels import relative_error

LAYER = cast("nn.Module", SimpleNamespace(is_causal=False, num_key_value_groups=1, training=False))


def heads(count: int, tokens: int, width: int, *, batch: int = 1) -> Tensor:
    """Return random heads (B, heads, tokens, width), laid out as a layer of transformers does."""
    torch.manual_seed(count * tokens + width)
    return torch.randn(batch, tokens, count, width).to(torch.bfloat16).transpose(1, 2)


def exact(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    out = functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), scale=scaling
    )
    return out.transpose(1, 2)


@pytest.fixture(autouse=True)
def _usable() -> None:
    if not patch_attention.fits(heads(1, 1, 64), heads(1, 1, 64)):
        pytest.skip("this processor cannot multiply pairs of bfloat16")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("width", [16, 24, 64, 72, 80, 128])
@pytest.mark.parametrize("tokens", [1, 15, 16, 33, 100, 1089])
def test_results_are_those_of_float32(tokens: int, width: int, threads: int) -> None:
    query, key, value = (heads(3, tokens, width, batch=2) for _ in range(3))
    key, value = key.flip(2), value.roll(1, 2)
    for scaling in (0.125, 1.0):
        with torch_threads(threads):
            given = patch_attention.attend(query, key, value, scaling)
        assert (given.dtype, given.shape) == (torch.bfloat16, (2, tokens, 3, width))
        assert relative_error(given, exact(query, key, value, scaling)) < 4e-3


def test_queries_keys_and_values_may_have_any_layout_and_number() -> None:
    query, key, value = heads(2, 70, 64), heads(2, 200, 64), heads(2, 200, 64)
    expected = patch_attention.attend(query, key, value, 0.1)
    assert relative_error(expected, exact(query, key, value, 0.1)) < 4e-3
    turned = query.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(patch_attention.attend(turned, key, value, 0.1), expected)
    assert torch.equal(patch_attention.attend(query, key.contiguous(), value, 0.1), expected)
    turned = key.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(patch_attention.attend(query, turned, value, 0.1), expected)


def test_scores_of_any_size_give_weights() -> None:
    query, key, value = 30 * heads(1, 90, 64), 30 * heads(1, 90, 64).flip(2), heads(1, 90, 64)
    given = patch_attention.attend(query, key, value, 1.0)
    assert relative_error(given, exact(query, key, value, 1.0)) < 4e-3
    same = patch_attention.attend(0 * query, key, value, 1.0)
    assert relative_error(same, exact(0 * query, key, value, 1.0)) < 4e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_out_of_range_is_out_of_range_in_the_results(bad: float) -> None:
    """Else a damaged checkpoint gives replies that look sound."""
    query, key, value = (heads(2, 80, 72) for _ in range(3))
    for changed in (query, key, value):
        before = changed[0, 1, 77, 5].clone()
        changed[0, 1, 77, 5] = bad
        given = patch_attention.attend(query, key, value, 0.1)
        expected = exact(query, key, value, 0.1).isfinite()
        assert not expected[0, :, 1].all()
        assert torch.equal(given.isfinite(), expected)
        changed[0, 1, 77, 5] = before


def test_only_what_fits_is_computed() -> None:
    key = heads(2, 100, 64)
    for query, other in (
        (heads(2, 100, 68), heads(2, 100, 68)),
        (heads(2, 100, 136), heads(2, 100, 136)),
        (heads(2, 100, 8), heads(2, 100, 8)),
        (key.float(), key.float()),
        (key, heads(2, 5121, 64)),
    ):
        assert not patch_attention.fits(query, other)
    assert patch_attention.fits(key, heads(2, 5120, 64))
    with compiled_for(32):
        assert not patch_attention.fits(key, key)


def test_tiles_without_padding_are_computed_by_it() -> None:
    def way(queries: int, mask: Tensor | None = None) -> Way:
        return TILED.choose_way(LAYER, heads(2, queries, 64), heads(2, queries, 64), mask)

    assert way(64) == "compiled"
    assert way(63) == "library"
    assert way(1024, torch.ones(1, 1, 1, 1024, dtype=torch.bool)) == "tiled"
    query, key, value = (heads(2, 100, 64) for _ in range(3))
    given, _ = TILED(LAYER, query, key, value, None, is_causal=False)
    assert torch.equal(given, patch_attention.attend(query, key, value, 0.125))
