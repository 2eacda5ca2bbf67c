"""8-bit weights: products of the compiled kernel are exact, and torch's kernel is tried first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.models.kernels.int8 import kernel as int8_kernel
from idefics_cli.models.kernels.int8.linear import CompiledInt8Linear, TorchInt8Linear, quantize
from idefics_cli.models.kernels.openmp import torch_threads
from tests.support.kernels import lying, needs_compiler, refusing, relative_error


def test_the_largest_weight_of_an_output_is_127() -> None:
    weight = torch.randn(96, 64)
    weight[3] = 0
    numbers, scale = quantize(weight)
    assert numbers.abs().amax(1).tolist() == [0 if row == 3 else 127 for row in range(96)]
    assert scale.isfinite().all()


def weights(outputs: int = 66, width: int = 192) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-127, 128, (outputs, width), generator=generator, dtype=torch.int8)


# 66 and 5: the last outputs do not fill a piece. `dots.py` does not take a width of 208.
@needs_compiler
@pytest.mark.parametrize("outputs", [4, 5, 66])
@pytest.mark.parametrize("rows", [1, 2, 4, 7])
@pytest.mark.parametrize("threads", [1, 3])
def test_products_are_exact(rows: int, outputs: int, threads: int, width_of_registers: int) -> None:
    weight = weights(outputs, 208)
    given = torch.randn(rows, 208, generator=torch.Generator().manual_seed(2))
    with torch_threads(threads):
        product = int8_kernel.product(given, weight)
    assert relative_error(product, given.double() @ weight.double().t()) < 1e-6


@needs_compiler
def test_weights_may_begin_anywhere_in_memory() -> None:
    # torch's kernel crashes on these.
    odd = torch.empty(66 * 192 + 1, dtype=torch.int8)[1:].view(66, 192).copy_(weights())
    assert odd.data_ptr() % 64
    rows = torch.randn(3, 192)
    assert torch.equal(int8_kernel.product(rows, odd), int8_kernel.product(rows, weights()))


@needs_compiler
def test_the_compiled_kernel_multiplies_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    true = int8_kernel.product

    def product(rows: Tensor, weight: Tensor) -> Tensor:
        called.append(len(rows))
        return true(rows, weight)

    monkeypatch.setattr(int8_kernel, "product", product)
    half = torch.bfloat16
    few = CompiledInt8Linear.FEW_ROWS
    beside = CompiledInt8Linear.FEW_ROWS_BESIDE_BFLOAT16
    # `dots.py` does not take a width of 208.
    plain = CompiledInt8Linear(nn.Linear(208, 66))
    dotted = CompiledInt8Linear(nn.Linear(192, 66), product_dtype=half)
    with torch.inference_mode():
        for count in (1, few, few + 1):
            plain(torch.randn(count, 208))
        assert called == [1, few]
        called.clear()
        # Rows that are not multiplied in bfloat16 would be in float32.
        for count, dtype in ((beside, half), (beside + 1, half), (beside + 1, torch.float32)):
            dotted(torch.randn(count, 192).to(dtype))
        assert called == [beside, beside + 1]


@needs_compiler
def test_a_compiled_kernel_that_refuses_or_lies_fails_its_self_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for product in (refusing, lying(int8_kernel.product)):
        monkeypatch.setattr(int8_kernel, "product", product)
        assert not CompiledInt8Linear.passes_self_test()


def test_torchs_kernel_fails_its_self_test_where_it_is_missing_or_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert TorchInt8Linear.passes_self_test()

    def lies(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return torch.zeros(len(rows), len(weight), dtype=rows.dtype)

    for kernel in (refusing, lies):
        monkeypatch.setattr(torch, "_weight_int8pack_mm", kernel)
        assert not TorchInt8Linear.passes_self_test()


@pytest.mark.parametrize("width", [8, 24, 72])
def test_a_width_that_torchs_kernel_computes_wrongly_does_not_fit(width: int) -> None:
    assert TorchInt8Linear.layer_for(nn.Linear(width, 64)) is None
