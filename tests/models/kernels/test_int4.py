"""4-bit weights by torch's kernel: right by both ways and in every layout."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.core.types import LoadSpec
from idefics_cli.models.kernels.int4 import kernel as int4_kernel
from idefics_cli.models.kernels.int4 import linear as int4
from idefics_cli.models.kernels.int4.linear import Int4Linear, dequantize, quantize
from idefics_cli.models.kernels.int8.linear import Int8Linear
from idefics_cli.models.loading.loader import load
from tests.support.kernels import relative_error


def layer(*, bias: bool = False, width: int = 96, outputs: int = 192) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, outputs, bias=bias)


def exact(ours: Int4Linear, states: Tensor) -> Tensor:
    """The product with the rounded weights, in float64."""
    out = states.double() @ dequantize(ours.weight, ours.scales).double()
    return out if ours.bias is None else out + ours.bias.double()


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_off_by_little_more_than_half_a_step(size: int, dtype: torch.dtype) -> None:
    weight = layer().weight.detach().to(dtype)
    # Not around zero, equal throughout, and of one sign.
    weight[3, :32] = 5 + weight[3, :32]
    weight[4] = 0.25
    weight[5] = weight[5].abs()
    before = weight.clone()
    packed, scales = quantize(weight, size)
    assert torch.equal(weight, before)
    assert (packed.shape, packed.dtype) == ((192 // size, 96, size // 2), torch.uint8)
    assert (scales.shape, scales.dtype) == ((3, 192, 2), torch.bfloat16)
    back = dequantize(packed, scales).t()
    groups = weight.float().reshape(192, 3, 32)
    step = (groups.amax(2) - groups.amin(2)) / 15
    # The ends are rounded to 8 bits of precision: 8 steps of 2^-9 of one, and the middle's.
    room = step * (0.5 + 15 / 2**8) + groups.abs().amax(2) / 2**8
    assert ((back.reshape(192, 3, 32) - groups).abs() <= room[..., None]).all()
    assert torch.equal(back[4], torch.full((96,), 0.25))


def test_both_layouts_hold_the_same_weights() -> None:
    weight = layer().weight
    wide, narrow = (dequantize(*quantize(weight, size)) for size in (64, 32))
    assert torch.equal(wide, narrow)


def test_the_error_is_below_that_of_nf4() -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    theirs = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4"))
    ours = dequantize(*quantize(weight, 64)).t()
    assert relative_error(ours, weight.double()) < 0.95 * relative_error(theirs, weight.double())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "by_kernel", "by_widening"),
    [
        (torch.float32, 6e-3, 1e-6),
        (torch.bfloat16, 6e-3, 6e-3),
        (torch.float16, 6e-3, 1e-3),
    ],
)
def test_few_rows_and_many_give_the_products_of_the_rounded_weights(
    bias: bool, dtype: torch.dtype, by_kernel: float, by_widening: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # More than one part, the last of them smaller.
    monkeypatch.setattr(int4, "_WIDENED", 128)
    ours = Int4Linear(layer(bias=bias))
    states = torch.randn(2, 150, 96).to(dtype)
    with torch.inference_mode():
        many, few = ours(states), ours(states[:, :3])
    assert (many.dtype, many.shape) == (dtype, (2, 150, 192))
    assert (few.dtype, few.shape) == (dtype, (2, 3, 192))
    assert relative_error(many, exact(ours, states)) < by_widening
    assert relative_error(few, exact(ours, states[:, :3])) < by_kernel


@pytest.fixture
def _forgotten() -> Iterator[None]:
    """What was found out of the kernel is found out again."""
    for known in (int4.block, int4.has_kernel):
        known.cache_clear()
    yield
    for known in (int4.block, int4.has_kernel):
        known.cache_clear()


@pytest.mark.usefixtures("_forgotten")
@pytest.mark.parametrize("wrong", ["refuses", "lies", "slow"])
def test_a_kernel_that_is_wrong_missing_or_slow_is_not_used(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(rows: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
        raise RuntimeError("not on this processor")

    def lies(rows: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
        return torch.zeros(len(rows), scales.shape[1], dtype=rows.dtype)

    if wrong == "slow":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    else:
        monkeypatch.setattr(int4, "_product", {"refuses": refuses, "lies": lies}[wrong])
    assert not int4.has_kernel()
    ours, states = Int4Linear(layer(bias=True)), torch.randn(1, 96)
    with torch.inference_mode():
        assert relative_error(ours(states), exact(ours, states)) < 1e-6


@pytest.mark.usefixtures("_forgotten")
def test_the_layout_is_that_which_the_kernel_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_blocks_of_32(rows: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
        blocks = packed.reshape(-1, packed.shape[1], 16)
        return (rows.float() @ dequantize(blocks, scales)).to(rows.dtype)

    monkeypatch.setattr(int4, "_product", reads_blocks_of_32)
    assert int4.block() == 32
    assert Int4Linear(layer()).weight.shape == (6, 96, 16)


def test_layers_that_do_not_come_out_even_get_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4_kernel, "is_right", lambda: False)
    assert Int4Linear.fits(layer())
    assert not Int4Linear.fits(layer(width=80))
    assert not Int4Linear.fits(layer(outputs=96))
    model = load(
        LoadSpec(repo="demo", family="idefics2", quantization="4bit", format_4bit="int4")
    ).model
    assert isinstance(model, nn.Module)
    layer_0 = model.get_submodule("model.text_model.layers.0")
    kinds = {
        name.rpartition(".")[2]: type(part)
        for name, part in layer_0.named_modules()
        if name.endswith("_proj")
    }
    eights = {name for name, kind in kinds.items() if kind is Int8Linear}
    # Three heads of 32 are no block of 64.
    assert eights == {"k_proj", "v_proj"}
    assert {kind for name, kind in kinds.items() if name not in eights} == {Int4Linear}
