"""8-bit weights by a kernel compiled for this processor: exact, in every width, and in use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.models.kernels.int8 import kernel as int8_kernel
from idefics_cli.models.kernels.int8 import linear as int8
from idefics_cli.models.kernels.int8.linear import Int8Linear
from tests.support.kernels import (
    FAULTS,
    compiled_anew,
    needs_kernels,
    relative_error,
    spoil,
    torch_threads,
)

pytestmark = needs_kernels


def weights(outputs: int = 66, width: int = 192) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-127, 128, (outputs, width), generator=generator, dtype=torch.int8)


# 66 and 5: the last outputs do not fill a piece.
@pytest.mark.parametrize("outputs", [4, 5, 66])
@pytest.mark.parametrize("rows", [1, 2, 4, 7])
@pytest.mark.parametrize("threads", [1, 3])
def test_products_are_exact(rows: int, outputs: int, threads: int, width_of_registers: int) -> None:
    weight = weights(outputs)
    given = torch.randn(rows, 192, generator=torch.Generator().manual_seed(2))
    with torch_threads(threads):
        product = int8_kernel.product(given, weight)
    assert relative_error(product, given.double() @ weight.double().t()) < 1e-6


def test_weights_may_lie_anywhere_in_memory() -> None:
    # torch's kernel crashes on these.
    odd = torch.empty(66 * 192 + 1, dtype=torch.int8)[1:].view(66, 192).copy_(weights())
    assert odd.data_ptr() % 64
    rows = torch.randn(3, 192)
    assert torch.equal(int8_kernel.product(rows, odd), int8_kernel.product(rows, weights()))


def test_the_layer_takes_it_for_a_few_rows_where_the_width_comes_out_even(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert int8_kernel.is_right()
    called: list[int] = []
    true = int8_kernel.product

    def product(rows: Tensor, weight: Tensor) -> Tensor:
        called.append(len(rows))
        return true(rows, weight)

    monkeypatch.setattr(int8_kernel, "product", product)
    torch.manual_seed(0)
    for width, expected in ((192, [3]), (176, [])):
        called.clear()
        linear = nn.Linear(width, 66)
        ours, states = Int8Linear(linear), torch.randn(3, width)
        with torch.inference_mode():
            assert relative_error(ours(states), linear(states)) < 0.02
            ours(torch.randn(int8._FEW_ROWS + 1, width))
        assert called == expected


@pytest.mark.parametrize("fault", FAULTS)
def test_where_it_cannot_be_trusted_it_is_not_used(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with compiled_anew():
        spoil(int8_kernel, fault, monkeypatch)
        assert not int8_kernel.is_right()
