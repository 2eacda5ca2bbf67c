"""4-bit weights for torch's kernel: packed in the layout that it reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.models.kernels.int4.linear import TorchInt4Linear, dequantize, quantize
from tests.support.kernels import refusing, relative_error


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 192, bias=False)


@pytest.mark.parametrize("size", [32, 64])
def test_both_layouts_hold_the_same_weights(size: int) -> None:
    packed, scales = quantize(layer().weight, size)
    assert (packed.shape, packed.dtype) == ((192 // size, 96, size // 2), torch.uint8)
    assert (scales.shape, scales.dtype) == ((3, 192, 2), torch.bfloat16)
    assert torch.equal(dequantize(packed, scales), dequantize(*quantize(layer().weight, 64)))


def test_the_error_is_below_that_of_nf4() -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    theirs = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4"))
    ours = dequantize(*quantize(weight, 64)).t()
    assert relative_error(ours, weight) < 0.95 * relative_error(theirs, weight)


def test_a_kernel_that_is_missing_or_wrong_fails_its_self_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lies(rows: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
        return torch.zeros(len(rows), scales.shape[1], dtype=rows.dtype)

    for kernel in (refusing, lies):
        monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu", kernel)
        assert not TorchInt4Linear.passes_self_test()


def test_the_layout_is_the_one_that_the_kernel_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_blocks_of_32(rows: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
        blocks = packed.reshape(-1, rows.shape[1], 16)
        return (rows.float() @ dequantize(blocks, scales)).to(rows.dtype)

    monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu", reads_blocks_of_32)
    assert TorchInt4Linear.passes_self_test()
    assert TorchInt4Linear.layout() == 32
    assert TorchInt4Linear(layer()).weight.shape == (6, 96, 16)
