"""Products of 8-bit weights with many rows: exact for the rounded rows, whatever their number."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.models.kernels import compiler
from idefics_cli.models.kernels.int8 import panels
from idefics_cli.models.kernels.int8.linear import CompiledInt8Linear
from idefics_cli.models.kernels.openmp import torch_threads
from tests.support.kernels import as_rounded, needs_compiler, relative_error

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def without_products_of_bytes(width_of_registers: int) -> Iterator[None]:
    with compiler.compiled_for(width_of_registers, without={"avx512vnni", "avxvnni"}):
        yield


def weights(outputs: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights with their extremes, the scales and the bias of the outputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (outputs, width), generator=generator, dtype=torch.int8)
    scale, bias = torch.rand(2, outputs, generator=generator) + 0.1
    return weight, scale, bias


# 513, 700: some rows are in a second or third piece. 1088: more columns than fit a panel.
@pytest.mark.parametrize("width", [64, 512, 1088])
@pytest.mark.parametrize("outputs", [32, 96, 160])
@pytest.mark.parametrize("rows", [1, 6, 64, 257, 513, 700])
def test_products_are_exact_for_the_rounded_rows(rows: int, outputs: int, width: int) -> None:
    given = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    weight, scale, bias = weights(outputs, width)
    exact = as_rounded(given) @ (weight.double() * scale.double()[:, None]).t()
    for threads in (1, 3):
        with torch_threads(threads):
            assert relative_error(panels.product(given, weight, scale, None), exact) < 1e-6
            given_bias = panels.product(given, weight, scale, bias)
        assert relative_error(given_bias, exact + bias) < 1e-6


@pytest.mark.parametrize("width", [16, 72, 4304])
def test_a_width_that_fills_no_register_is_padded(width: int) -> None:
    given = torch.randn(70, width, generator=torch.Generator().manual_seed(0))
    weight, scale, bias = weights(64, width)
    exact = given.double() @ (weight.double() * scale.double()[:, None]).t() + bias
    assert relative_error(panels.product(given, weight, scale, bias), exact) < 1e-4


def test_the_largest_numbers_do_not_overflow() -> None:
    width = 1024
    weight = torch.full((64, width), -127, dtype=torch.int8)
    given = torch.full((64, width), -3.0)
    product = panels.product(given, weight, torch.ones(64), None)
    torch.testing.assert_close(product, torch.full((64, 64), 127 * 3.0 * width))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_out_of_range_spoils_its_row_only(bad: float) -> None:
    weight, scale, bias = weights(64, 128)
    given = torch.randn(70, 128, generator=torch.Generator().manual_seed(0))
    sound = panels.product(given, weight, scale, bias)
    given[7, 100] = bad
    damaged = panels.product(given, weight, scale, bias)
    assert damaged[7].isnan().all()
    others = torch.arange(70) != 7
    assert torch.equal(damaged[others], sound[others])


@pytest.mark.parametrize("outputs", [96, 95, 40])
def test_layers_of_every_height_multiply_many_rows(outputs: int) -> None:
    assert panels.fits(96)
    assert not panels.fits(95)
    original = nn.Linear(192, outputs)
    layer = CompiledInt8Linear.layer_for(original)
    assert layer is not None
    for rows in (panels.FEWEST_ROWS - 1, panels.FEWEST_ROWS, 300):
        given = torch.randn(2, rows, 192, generator=torch.Generator().manual_seed(rows))
        with torch.inference_mode():
            product, half = layer(given), layer(given.to(torch.bfloat16))
            exact = original(given)
        assert (product.dtype, half.dtype) == (torch.float32, torch.bfloat16)
        assert product.shape == exact.shape
        assert relative_error(product, exact) < 0.01
        assert relative_error(half.float(), exact) < 0.015
