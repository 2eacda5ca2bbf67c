"""bfloat16 weights in 12 bits: nothing is lost, and the products are those of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.models.kernels.bf16_12bit import kernel
from idefics_cli.models.kernels.bf16_12bit.linear import CompactLinear, ExactCompactLinear
from idefics_cli.models.kernels.bf16_12bit.products import multiplies_bfloat16
from idefics_cli.models.kernels.openmp import torch_threads
from tests.support.kernels import lying, needs_compiler, refusing, relative_error

pytestmark = needs_compiler


def weights(outputs: int = 64, width: int = 72) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(outputs, width, generator=generator).to(torch.bfloat16)


def unusual(width: int = 72) -> Tensor:
    """Weights of every size that bfloat16 has, and zeros of both signs."""
    weight = weights(width=width)
    weight[1] = 0
    weight[2, 3], weight[2, 4] = 0.0, -0.0
    weight[3] *= 1e-36
    weight[4] *= 1e36
    weight[5, ::9] = 1e-40  # subnormal
    weight[6, 7] = 3e38
    weight[7, :72] = -(2.0 ** torch.arange(-36, 36)).to(torch.bfloat16)
    weight[8] = 1e-40
    return weight


def unpacked(packed: kernel.Compact) -> Tensor:
    outputs, width = packed.shape
    wide = torch.empty(width, outputs)
    kernel.unpack(packed, 0, wide)
    return wide.t()


@pytest.mark.parametrize("threads", [1, 3])
def test_every_weight_is_unpacked_exactly(threads: int, width_of_registers: int) -> None:
    weight = unusual()
    with torch_threads(threads):
        packed = kernel.pack(weight, weights_per_outlier=1)
        assert packed is not None
        back = unpacked(packed)
    # Bit by bit, except for the sign of a zero in an output of zeros.
    assert torch.equal(back, weight.float())
    kept = [row for row in range(64) if row != 1]
    as_bits = back.to(torch.bfloat16).view(torch.int16)
    assert torch.equal(as_bits[kept], weight.view(torch.int16)[kept])


def test_few_weights_are_outliers() -> None:
    weight = weights(256, 1024)
    packed = kernel.pack(weight)
    assert packed is not None
    assert packed.shape == (256, 1024)
    assert packed.packed.nbytes == 256 * 1024 * 12 // 8
    # Gaussian numbers of at most 2^-15 of the largest of a thousand.
    share = len(packed.values) / weight.numel()
    assert 0 < share < 3e-4
    assert int(packed.starts[-1]) == len(packed.values)


def test_weights_that_12_bits_do_not_suit_are_left_alone() -> None:
    infinite, wild = weights(), weights()
    infinite[2, 3] = torch.inf
    wild[:, ::2] *= 1e-20
    assert kernel.pack(infinite) is None
    assert kernel.pack(wild) is None
    assert not kernel.fits(weights(64, 70))
    with torch.no_grad():
        linear = nn.Linear(72, 64, dtype=torch.bfloat16)
        linear.weight.copy_(wild)
    assert CompactLinear.layer_for(linear) is None
    assert CompactLinear.layer_for(nn.Linear(72, 64)) is None


def test_a_float32_model_gets_12_bits_where_all_weights_are_bfloat16_numbers() -> None:
    linear = nn.Linear(72, 64, bias=False)
    assert ExactCompactLinear.layer_for(linear) is None
    with torch.no_grad():
        linear.weight.copy_(weights())
    for dtype in (torch.float32, torch.bfloat16):
        ours = ExactCompactLinear.layer_for(linear.to(dtype))
        assert ours is not None
        assert torch.equal(unpacked(ours.compact), weights().float())
    linear.float()
    with torch.no_grad():
        linear.weight[63, 71] *= 1 + 2.0**-20
    assert not ExactCompactLinear.fits(linear)
    assert ExactCompactLinear.layer_for(linear) is None
    assert ExactCompactLinear.layer_for(linear.half()) is None


def test_a_processor_that_rounds_to_bfloat16_keeps_no_float32_model_in_12_bits() -> None:
    assert not (ExactCompactLinear.passes_self_test() and multiplies_bfloat16())
    assert multiplies_bfloat16() or ExactCompactLinear.passes_self_test()


# A width of 712 is more than the kernel unpacks at a time.
@pytest.mark.parametrize(
    ("rows", "width"), [*((rows, 72) for rows in (1, 2, 3, 4, 8, 15, 40)), (2, 712), (23, 712)]
)
def test_products_are_those_of_the_weights(rows: int, width: int, width_of_registers: int) -> None:
    weight = unusual(width)
    weight[4], weight[6] = 0, 1  # their products would overflow
    packed = kernel.pack(weight, weights_per_outlier=1)
    assert packed is not None
    given = torch.randn(rows, width, generator=torch.Generator().manual_seed(2))
    given = given.to(torch.bfloat16).float()
    # More than one tile of rows, the last of them smaller.
    product = kernel.product(given, packed, tile_bytes=16 * width * 4)
    exact = given.double() @ weight.double().t()
    # Output by output: their sizes are very different.
    for output in range(64):
        if weight[output].any():
            assert relative_error(product[:, output], exact[:, output]) < 1e-4
        else:
            assert not product[:, output].any()


def test_a_model_that_is_given_another_dtype_keeps_its_12_bits() -> None:
    ours = CompactLinear.layer_for(nn.Linear(72, 64, bias=False, dtype=torch.bfloat16))
    assert ours is not None
    activations = torch.randn(3, 72)
    with torch.inference_mode():
        before = ours(activations)
        assert torch.equal(nn.Sequential(ours).double()(activations), before)


def test_kernels_that_refuse_or_lie_fail_their_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for product in (refusing, lying(kernel.product)):
        monkeypatch.setattr(kernel, "product", product)
        assert not CompactLinear.passes_self_test()
