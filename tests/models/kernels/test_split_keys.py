"""Attention with divided keys gives the results of transformers' attention, without a copy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from idefics_cli.models.kernels.split_keys import SPLIT_KEYS, SplitKeyAttention, dtypes_to_check
from tests.support.kernels import refusing
from tests.support.recording import CpuCapture

ROWS, WIDTH, CHUNK = 3, 16, 8
HEADS = [(8, 2), (6, 6), (6, 1)]
ATTENTION = SplitKeyAttention("test", chunk=CHUNK)
# Lengths of the rows in buffers of 24 positions.
LENGTHS = torch.tensor([21, 3, 1])


def in_buffers(
    heads: int, kv_heads: int, keys: int, capacity: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the query, keys and values of one token; the buffers have more rows and positions."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(ROWS, 1, heads, WIDTH, generator=generator).transpose(1, 2)
    buffers = torch.randn(2, ROWS + 1, kv_heads, capacity, WIDTH, generator=generator).to(dtype)
    key, value = buffers[:, :ROWS, :, :keys]
    return query.to(dtype), key, value


def masks(keys: int) -> dict[str, Tensor]:
    seen = (torch.arange(keys) < LENGTHS[:, None])[:, None, None]
    added = torch.zeros(seen.shape).masked_fill(~seen, -1e9)
    return {"bool": seen, "added": added, "one for all": seen[:1]}


def both(
    qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Return our result and that of transformers."""
    query, key, value = qkv
    module: Any = SimpleNamespace(
        num_key_value_groups=query.shape[1] // key.shape[1], is_causal=True, training=False
    )
    ours, scores = ATTENTION(module, query, key, value, mask, scaling=0.2, **options)
    assert scores is None
    theirs, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.2, **options)
    return ours, theirs


@pytest.mark.parametrize("mask", ["bool", "added", "one for all"])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("keys", [8, 24, 64])
def test_a_step_over_whole_buffers_is_the_librarys(
    keys: int, heads: int, kv_heads: int, mask: str
) -> None:
    ours, theirs = both(in_buffers(heads, kv_heads, keys, keys), masks(keys)[mask])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    # The library rounds in another order, so this is not its result.
    assert keys == 8 or not torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("keys", "capacity"),
    [(24, 40), (21, 24), (21, 21)],
    ids=["chunks in larger buffers", "no chunks in larger buffers", "no chunks"],
)
def test_a_part_of_a_buffer_is_left_to_the_library(keys: int, capacity: int) -> None:
    assert torch.equal(*both(in_buffers(6, 3, keys, capacity), masks(keys)["bool"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_round_only_weights_and_results(dtype: torch.dtype) -> None:
    # Scores of some 100, which bfloat16 rounds to multiples of 0.5.
    query, key, value = in_buffers(8, 2, 24, 24, dtype)
    wide = both((25 * query.float(), key.float(), value.float()), masks(24)["bool"])[1]
    ours, _ = both((25 * query, key, value), masks(24)["bool"])
    assert ours.dtype == dtype
    error = (ours.float() - wide).norm() / wide.norm()
    assert error < 2 * torch.finfo(dtype).eps


def test_a_row_without_keys_gives_numbers_and_hidden_positions_none() -> None:
    query, key, value = in_buffers(6, 3, 24, 24)
    mask = masks(24)["bool"].clone()
    mask[2] = False
    ours, _ = both((query, key, value), mask)
    assert ours.isfinite().all()
    key[:, :, 21:], value[:, :, 21:] = 1e4, -1e4
    assert torch.equal(both((query, key, value), mask)[0][:2], ours[:2])


@pytest.mark.parametrize(
    "options",
    [{"position_bias": torch.randn(1, 6, 1, 24)}, {"is_causal": True}],
    ids=["bias", "no mask"],
)
def test_other_calls_are_left_to_the_library(options: dict[str, Any]) -> None:
    mask = masks(24)["bool"] if "position_bias" in options else None
    assert torch.equal(*both(in_buffers(6, 3, 24, 24), mask, **options))


def test_several_queries_and_masks_of_single_heads_are_left_to_the_library() -> None:
    query, key, value = in_buffers(6, 3, 24, 24)
    several = torch.ones(ROWS, 1, 2, 24, dtype=torch.bool)
    assert torch.equal(*both((query.expand(-1, -1, 2, -1), key, value), several))
    own = masks(24)["bool"].expand(-1, 6, -1, -1)
    assert torch.equal(*both((query, key, value), own))


class Sizes(TorchDispatchMode):
    """Records the size of the largest tensor that is allocated, without views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.most = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
            self.most = max(self.most, result.numel())
        return result


def test_neither_keys_nor_values_are_copied() -> None:
    qkv = in_buffers(8, 2, 24, 24)
    module: Any = SimpleNamespace(num_key_value_groups=4, is_causal=True, training=False)
    with Sizes() as sizes:
        SplitKeyAttention("test", chunk=12)(module, *qkv, masks(24)["bool"], scaling=0.2)
    # The largest are the partial sums of two chunks.
    assert sizes.most == ROWS * 2 * 8 * WIDTH
    assert sizes.most < qkv[1].numel()


def test_the_host_reads_nothing_back() -> None:
    qkv = in_buffers(8, 2, 24, 24)
    module: Any = SimpleNamespace(num_key_value_groups=4, is_causal=True, training=False)
    mask = masks(24)["bool"]
    with torch.inference_mode():
        replay = CpuCapture()(lambda: ATTENTION(module, *qkv, mask, scaling=0.2)[0])
        expected = replay().clone()
        # A replay attends to what the buffers then hold.
        qkv[1].mul_(-1)
        assert not torch.equal(replay(), expected)


def test_the_self_test_finds_wrong_products_and_products_that_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert SPLIT_KEYS.passes_self_test()
    sound = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda left, right: 1.05 * sound(left, right))
    assert not SPLIT_KEYS.passes_self_test()
    monkeypatch.setattr(torch, "bmm", refusing)
    assert not SPLIT_KEYS.passes_self_test()


@pytest.mark.parametrize(("capability", "has_bf16"), [((7, 5), False), ((8, 0), True)])
def test_an_old_gpu_is_not_tested_in_the_dtype_that_it_lacks(
    capability: tuple[int, int], has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert (torch.bfloat16 in dtypes_to_check("cuda:1")) == has_bf16
    assert {torch.float32, torch.float16} <= set(dtypes_to_check("cuda:1"))
    assert torch.bfloat16 in dtypes_to_check("cpu")
