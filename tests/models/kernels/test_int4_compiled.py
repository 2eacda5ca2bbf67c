"""The compiled kernels for 4-bit weights are exact for every width of registers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from idefics_cli.models.kernels import compiler
from idefics_cli.models.kernels.int4 import kernel as int4_kernel
from idefics_cli.models.kernels.int4 import layout, linear, panels
from idefics_cli.models.kernels.int4.compiled import CompiledInt4Linear, quantize
from idefics_cli.models.kernels.int4.linear import dequantize
from idefics_cli.models.kernels.openmp import torch_threads
from tests.support.kernels import lying, needs_compiler, refusing, relative_error

pytestmark = needs_compiler


def weights(outputs: int = 192, width: int = 96) -> Tensor:
    return torch.randn(outputs, width, generator=torch.Generator().manual_seed(0))


def test_what_is_packed_comes_out_again() -> None:
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randint(0, 16, (48, 128), generator=generator, dtype=torch.uint8)
    codes, zeros = torch.randint(0, 256, (2, 48, 4), generator=generator, dtype=torch.uint8)
    scale = torch.randn(48, generator=generator)
    packed = layout.pack(numbers, codes, zeros, scale)
    # 4.5 bits for a weight, and a scale for each output.
    assert (packed.shape, packed.dtype) == ((3, 16 * 128 * 9 // 16 + 64), torch.uint8)
    groups = numbers.reshape(48, 4, 32) - zeros.float()[..., None] / 16
    groups = groups * (layout.steps_of(codes) * scale[:, None])[..., None]
    assert torch.equal(layout.unpack(packed), groups.reshape(48, 128))


def test_a_step_is_rounded_to_the_nearest_of_256() -> None:
    steps = layout.steps_of(torch.arange(256).to(torch.uint8))
    assert float(steps[0]) == layout.SMALLEST_STEP
    assert float(steps[-1]) == layout.LARGEST_STEP
    assert torch.equal(layout.step_codes(steps), torch.arange(256).to(torch.uint8))
    between = torch.cat([steps[:-1] * 0.51 + steps[1:] * 0.49, steps[1:], torch.zeros(1)])
    nearest = layout.steps_of(layout.step_codes(between))
    assert torch.equal(nearest, torch.cat([steps[:-1], steps[1:], steps[:1]]))


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
    exact = rounded.double() @ layout.unpack(packed).double().t()
    assert relative_error(product, exact) < 1e-6
    assert relative_error(product, given.double() @ layout.unpack(packed).double().t()) < 0.012


@pytest.fixture
def with_panels() -> Iterator[None]:
    with compiler.compiled_for(32, without={"avx512vnni", "avxvnni"}):
        yield


# 544, 1056: more columns than a panel has. 257, 700: some rows are in a second or third piece.
@pytest.mark.usefixtures("with_panels")
@pytest.mark.parametrize("width", [32, 544, 1056])
@pytest.mark.parametrize("outputs", [16, 176])
@pytest.mark.parametrize("rows", [1, 5, 257, 700])
def test_panels_compute_the_same_numbers(rows: int, outputs: int, width: int) -> None:
    packed = quantize(weights(outputs, width))
    given = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    given[0, :32] = 0
    assert panels.gains()
    each = torch.cat([int4_kernel.product(row[None], packed) for row in given])
    for threads in (1, 3):
        with torch_threads(threads):
            product = panels.product(*int4_kernel.round_rows(given), packed)
        assert torch.equal(product, each)
    assert torch.equal(int4_kernel.product(given, packed), each)


@pytest.mark.usefixtures("with_panels")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_out_of_range_spoils_its_row_only_in_panels(bad: float) -> None:
    packed = quantize(weights(64, 128))
    given = torch.randn(70, 128, generator=torch.Generator().manual_seed(0))
    sound = int4_kernel.product(given, packed)
    given[7, 100] = bad
    damaged = int4_kernel.product(given, packed)
    assert not damaged[7].isfinite().any()
    others = torch.arange(70) != 7
    assert torch.equal(damaged[others], sound[others])


def test_the_largest_numbers_do_not_overflow(width_of_registers: int) -> None:
    numbers = torch.full((16, 64), 15, dtype=torch.uint8)
    ones, nothing = layout.step_codes(torch.ones(16, 2)), torch.zeros(16, 2).byte()
    packed = layout.pack(numbers, ones, nothing, torch.ones(16))
    rows = torch.tensor([[127.0], [-127.0]]).repeat(20, 64)
    expected = torch.tensor([[64 * 15 * 127.0], [-64 * 15 * 127.0]]).repeat(20, 16)
    assert torch.equal(int4_kernel.product(rows, packed), expected)
    with compiler.compiled_for(32, without={"avx512vnni", "avxvnni"}):
        assert torch.equal(int4_kernel.product(rows, packed), expected)


def test_weights_are_rounded_to_what_torchs_kernel_gets() -> None:
    weight = weights(320, 256)
    theirs = dequantize(*linear.quantize(weight, 64)).t()
    ours = layout.unpack(quantize(weight))
    assert relative_error(ours, weight) < 1.02 * relative_error(theirs, weight)


def test_weights_of_any_size_are_rounded_as_well() -> None:
    weight = weights(64, 256)
    for factor in (1e-30, 1e-6, 1e6, 1e30):
        again = layout.unpack(quantize(weight * factor))
        assert relative_error(again / factor, weight) < 0.08


def test_a_group_beside_far_larger_ones_keeps_its_weights() -> None:
    weight = weights(16, 256)
    weight[:, 32:64] *= 10_000
    again = layout.unpack(quantize(weight))
    for group in (slice(0, 32), slice(32, 64), slice(64, 256)):
        assert relative_error(again[:, group], weight[:, group]) < 0.1


@pytest.mark.parametrize("factor", [1e5, 1e6, 1e8, 1e12])
def test_weights_beside_extreme_ones_are_not_off_by_more_than_themselves(factor: float) -> None:
    weight = weights(16, 256)
    weight[:, :32] *= factor
    again = layout.unpack(quantize(weight))[:, 32:]
    assert ((again - weight[:, 32:]).abs() <= weight[:, 32:].abs() + 3e-6 * factor).all()
    assert relative_error(again, weight[:, 32:]) <= 1


def test_weights_of_one_sign_and_zeros_are_rounded() -> None:
    weight = weights(16, 128).abs()
    weight[:, 32:64] *= -1
    weight[:, 64:96] = 0
    weight[3] = 0
    again = layout.unpack(quantize(weight))
    assert relative_error(again, weight) < 0.08
    assert not again[:, 64:96].any()
    assert not again[3].any()


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_a_damaged_weight_damages_its_output_only(damage: float) -> None:
    weight = weights(32, 64)
    weight[5, 7] = damage
    product = int4_kernel.product(weights(3, 64), quantize(weight))
    assert not product[:, 5].isfinite().any()
    assert product[:, 6:].isfinite().all()


def test_a_kernel_that_refuses_or_lies_fails_its_self_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for product in (refusing, lying(int4_kernel.product)):
        monkeypatch.setattr(int4_kernel, "product", product)
        assert not CompiledInt4Linear.passes_self_test()
