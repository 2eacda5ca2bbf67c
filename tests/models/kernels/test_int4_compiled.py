"""4-bit weights by a kernel compiled for this processor: exact, in every width, and in use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.core.types import LoadSpec
from idefics_cli.models.kernels.int4 import kernel as int4_kernel
from idefics_cli.models.kernels.int4.compiled import CompiledInt4Linear, quantize
from idefics_cli.models.kernels.int4.linear import Int4Linear
from idefics_cli.models.kernels.int8.linear import Int8Linear
from idefics_cli.models.loading import layers as quantized_layers
from idefics_cli.models.loading.loader import load
from tests.support.kernels import (
    FAULTS,
    compiled_anew,
    needs_kernels,
    relative_error,
    spoil,
    torch_threads,
)

pytestmark = needs_kernels


def weights(outputs: int = 192, width: int = 96) -> Tensor:
    return torch.randn(outputs, width, generator=torch.Generator().manual_seed(0))


def test_what_is_packed_comes_out_again() -> None:
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randint(0, 16, (48, 128), generator=generator, dtype=torch.uint8)
    step, lowest = torch.randn(2, 48, 4, generator=generator).to(torch.bfloat16)
    packed = int4_kernel.pack(numbers, step, lowest)
    assert (packed.shape, packed.dtype) == ((3, 4, 320), torch.uint8)
    groups = numbers.reshape(48, 4, 32) * step.float()[..., None] + lowest.float()[..., None]
    assert torch.equal(int4_kernel.unpack(packed), groups.reshape(48, 128))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_is_rounded_to_a_127th_of_its_largest_number(dtype: torch.dtype) -> None:
    rows = weights(5, 96).to(dtype)
    rows[0, :32] = 0
    rows[1, 40] = 1000
    numbers, scales = int4_kernel.round_rows(rows)
    assert (numbers.dtype, numbers.shape, scales.shape) == (torch.int8, (5, 96), (5, 3, 2))
    groups = rows.float().reshape(5, 3, 32)
    back = numbers.float().reshape(5, 3, 32) * scales[..., :1]
    room = groups.abs().amax(2, keepdim=True) / 127 * 0.501
    assert ((back - groups).abs() <= room).all()
    torch.testing.assert_close(scales[..., 1], back.sum(2))


def test_rows_that_lie_apart_are_rounded_as_if_they_did_not() -> None:
    rows = weights(96, 12).t()
    assert not rows.is_contiguous()
    for given, wanted in zip(
        int4_kernel.round_rows(rows), int4_kernel.round_rows(rows.contiguous()), strict=True
    ):
        assert torch.equal(given, wanted)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 13, 150])
@pytest.mark.parametrize("threads", [1, 3])
def test_products_are_those_of_the_rounded_numbers(
    rows: int, threads: int, width_of_registers: int
) -> None:
    packed = quantize(weights())
    given = torch.randn(rows, 96, generator=torch.Generator().manual_seed(2))
    numbers, scales = int4_kernel.round_rows(given)
    rounded = (numbers.float().reshape(rows, 3, 32) * scales[..., :1]).reshape(rows, 96)
    with torch_threads(threads):
        product = int4_kernel.product(given, packed)
    exact = rounded.double() @ int4_kernel.unpack(packed).double().t()
    assert relative_error(product, exact) < 1e-6
    assert relative_error(product, given.double() @ int4_kernel.unpack(packed).double().t()) < 0.012


def test_the_largest_numbers_do_not_overflow(width_of_registers: int) -> None:
    numbers = torch.full((16, 64), 15, dtype=torch.uint8)
    ones, nothing = torch.ones(16, 2).bfloat16(), torch.zeros(16, 2).bfloat16()
    packed = int4_kernel.pack(numbers, ones, nothing)
    rows = torch.tensor([[127.0], [-127.0]]).expand(2, 64)
    expected = torch.tensor([[64 * 15 * 127.0], [-64 * 15 * 127.0]]).expand(2, 16)
    assert torch.equal(int4_kernel.product(rows, packed), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_off_by_little_more_than_half_a_step(dtype: torch.dtype) -> None:
    weight = weights().to(dtype)
    # Not around zero, equal throughout, and of one sign.
    weight[3, :32] = 5 + weight[3, :32]
    weight[4] = 0.25
    weight[5] = weight[5].abs()
    before = weight.clone()
    back = int4_kernel.unpack(quantize(weight))
    assert torch.equal(weight, before)
    groups = weight.float().reshape(192, 3, 32)
    step = (groups.amax(2) - groups.amin(2)) / 15
    # The ends are rounded to 8 bits of precision: 15 steps of 2^-9 of one, and the lowest's.
    room = step * (0.5 + 15 / 2**8) + groups.abs().amax(2) / 2**8
    assert ((back.reshape(192, 3, 32) - groups).abs() <= room[..., None]).all()
    assert torch.equal(back[4], torch.full((96,), 0.25))


def test_large_weights_are_rounded_in_parts_and_to_what_torchs_kernel_gets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from idefics_cli.models.kernels.int4 import compiled as int4_compiled
    from idefics_cli.models.kernels.int4 import linear as int4

    weight = weights(320, 256)
    whole = quantize(weight)
    monkeypatch.setattr(int4_compiled, "_PART", 128)
    assert torch.equal(quantize(weight), whole)
    theirs = int4.dequantize(*int4.quantize(weight, 64)).t()
    ours = int4_kernel.unpack(whole)
    assert relative_error(ours, weight) < 1.02 * relative_error(theirs, weight)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_layer_keeps_shape_and_dtype_and_adds_its_bias(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 192, bias=bias)
    ours, states = CompiledInt4Linear(linear), torch.randn(2, 7, 96).to(dtype)
    with torch.inference_mode():
        given = ours(states)
        linear.weight.copy_(int4_kernel.unpack(ours.packed))
        wanted = linear.float()(states.float())
    assert (given.dtype, given.shape) == (dtype, (2, 7, 192))
    assert relative_error(given, wanted) < 0.012


def test_a_layer_from_kept_numbers_is_the_same() -> None:
    linear = nn.Linear(96, 192)
    made = CompiledInt4Linear(linear)
    again = CompiledInt4Linear(nn.Linear(96, 192), made.numbers())
    assert torch.equal(again.packed, made.packed)


def test_it_is_used_where_groups_come_out_even() -> None:
    assert CompiledInt4Linear.fits(nn.Linear(96, 48))
    assert not CompiledInt4Linear.fits(nn.Linear(80, 48))
    assert not CompiledInt4Linear.fits(nn.Linear(96, 40))
    model = load(
        LoadSpec(repo="demo", family="idefics2", quantization="4bit", format_4bit="int4")
    ).model
    assert isinstance(model, nn.Module)
    layer = model.get_submodule("model.text_model.layers.0")
    kinds = {type(part) for name, part in layer.named_modules() if name.endswith("_proj")}
    assert kinds == {CompiledInt4Linear}
    assert type(model.get_submodule("lm_head")) is Int8Linear


@pytest.mark.parametrize("fault", FAULTS)
def test_where_it_cannot_be_trusted_torchs_kernel_is_used(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with compiled_anew():
        spoil(int4_kernel, fault, monkeypatch)
        layout = quantized_layers.layout()
        model = nn.ModuleDict({"layer": nn.Linear(64, 64)})
        quantized_layers.quantize(model, "4bit", skipped=(), dtype=torch.float32)
    assert type(model["layer"]) is Int4Linear
    monkeypatch.undo()
    # What one kernel's layers are kept in is no place for the other's.
    assert layout != quantized_layers.layout()
