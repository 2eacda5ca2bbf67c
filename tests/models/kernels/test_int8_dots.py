"""Products of 8-bit weights with rows in 16 bits: exact for the rounded rows, which lose little."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from idefics_cli.models.kernels import compiler
from idefics_cli.models.kernels.byte_dots import has_dots
from idefics_cli.models.kernels.int8 import dots
from idefics_cli.models.kernels.int8 import kernel as int8_kernel
from idefics_cli.models.kernels.openmp import torch_threads
from tests.support.kernels import as_rounded, needs_compiler, relative_error

pytestmark = needs_compiler


@pytest.fixture(autouse=True, params=["bytes", "words"])
def numbers_of_rows(request: pytest.FixtureRequest, width_of_registers: int) -> Iterator[None]:
    """Multiply bytes, or numbers of 16 bits, as on processors without products of bytes."""
    if request.param == "words":
        with compiler.compiled_for(width_of_registers, without={"avx512vnni", "avxvnni"}):
            yield
    elif has_dots():
        yield
    else:
        pytest.skip(f"this processor has no products of bytes in {width_of_registers} bytes")


def weights(outputs: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-127, 128, (outputs, width), generator=generator, dtype=torch.int8)


def rows_of(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


# 4160: the columns of a row do not fill the last part that stays in the cache.
@pytest.mark.parametrize("width", [64, 192, 4160])
@pytest.mark.parametrize("outputs", [16, 17, 66])
@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_products_are_exact_for_the_rounded_rows(rows: int, outputs: int, width: int) -> None:
    given, weight = rows_of(rows, width), weights(outputs, width)
    exact = as_rounded(given) @ weight.double().t()
    for threads in (1, 3):
        with torch_threads(threads):
            assert relative_error(dots.product(given, weight), exact) < 1e-6


def test_a_row_gives_the_same_bits_beside_others() -> None:
    given, weight = rows_of(9, 960), weights(64, 960)
    together = int8_kernel.product(given, weight)
    alone = torch.cat([int8_kernel.product(row[None], weight) for row in given])
    assert torch.equal(together, alone)


def test_rounding_is_off_by_half_a_step_at_most() -> None:
    given = torch.cat([rows_of(3, 512), torch.zeros(1, 512)])
    given[1, 7] = -900  # an outlier
    given[2] *= 1e-30
    step = given.abs().amax(1, keepdim=True).double() / (127 * 256)
    error = (as_rounded(given) - given.double()).abs()
    # The numbers are computed in float32, which adds a little.
    assert bool((error <= step * 0.505).all())
    assert int8_kernel.product(given, weights(32, 512))[3].abs().max() == 0


def test_largest_sums_do_not_overflow() -> None:
    width = dots.MOST_WIDTH
    row = torch.ones(1, width)
    row[0, ::2] = -1
    for signs in (1, row[0]):
        weight = (127 * signs * torch.ones(16, width)).to(torch.int8)
        for each in (row, -row, row.abs(), -row.abs()):
            exact = each.double() @ weight.double().t()
            assert torch.allclose(int8_kernel.product(each, weight).double(), exact, rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_damaged_rows_show(value: float) -> None:
    given = rows_of(2, 128)
    given[0, 5] = value
    product = int8_kernel.product(given, weights(32, 128))
    assert not product[0].isfinite().any()
    assert product[1].isfinite().all()


def test_weights_may_begin_anywhere_in_memory() -> None:
    weight = weights(66, 192)
    odd = torch.empty(66 * 192 + 1, dtype=torch.int8)[1:].view(66, 192).copy_(weight)
    assert odd.data_ptr() % 64
    given = rows_of(3, 192)
    assert torch.equal(int8_kernel.product(given, odd), int8_kernel.product(given, weight))


def test_few_outputs_stay_in_float32() -> None:
    given, weight = rows_of(3, 192), weights(66, 192)
    exact = given.double() @ weight.double().t()
    assert 1e-6 < relative_error(int8_kernel.product(given, weight), exact) < 1e-4
    assert relative_error(int8_kernel.product(given, weight[:15]), exact[:, :15]) < 1e-6
