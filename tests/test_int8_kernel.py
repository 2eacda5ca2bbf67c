"""8-bit weights by a kernel compiled for this processor: exact, in every width, and in use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.models import int8, int8_kernel, jit
from idefics_cli.models.int8 import Int8Linear

pytestmark = pytest.mark.skipif(not jit.is_available(), reason="kernels are compiled on x86 Linux")


def weights(outputs: int = 66, width: int = 192) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-127, 128, (outputs, width), generator=generator, dtype=torch.int8)


def error(given: Tensor, wanted: Tensor) -> float:
    return float((given.double() - wanted.double()).norm() / wanted.double().norm())


def forget() -> None:
    int8_kernel.is_right.cache_clear()
    int8_kernel._product.cache_clear()


@pytest.fixture(params=[32, 64])
def width_of_registers(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    """Kernels for processors with AVX2, and with AVX512."""
    size: int = request.param
    if size > jit.vector_bytes():
        pytest.skip("this processor has no AVX512")
    forget()
    monkeypatch.setattr(int8_kernel, "vector_bytes", lambda: size)
    yield size
    forget()


# 66 and 5: the last outputs do not fill a piece.
@pytest.mark.parametrize("outputs", [4, 5, 66])
@pytest.mark.parametrize("rows", [1, 2, 4, 7])
@pytest.mark.parametrize("threads", [1, 3])
def test_products_are_exact(rows: int, outputs: int, threads: int, width_of_registers: int) -> None:
    weight = weights(outputs)
    given = torch.randn(rows, 192, generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        product = int8_kernel.product(given, weight)
    finally:
        torch.set_num_threads(before)
    assert error(product, given.double() @ weight.double().t()) < 1e-6


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
            assert error(ours(states), linear(states)) < 0.02
            ours(torch.randn(int8._FEW_ROWS + 1, width))
        assert called == expected


@pytest.mark.parametrize("wrong", ["refuses", "lies", "absent"])
def test_where_it_cannot_be_trusted_it_is_not_used(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(rows: Tensor, weight: Tensor) -> Tensor:
        raise RuntimeError("no such instruction")

    def lies(rows: Tensor, weight: Tensor) -> Tensor:
        return torch.zeros(len(rows), len(weight))

    forget()
    if wrong == "absent":
        monkeypatch.setattr(jit, "is_available", lambda: False)
    else:
        monkeypatch.setattr(int8_kernel, "product", {"refuses": refuses, "lies": lies}[wrong])
    try:
        assert not int8_kernel.is_right()
    finally:
        forget()
