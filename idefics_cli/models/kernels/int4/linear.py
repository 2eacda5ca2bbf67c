"""Linear layers with 4-bit weights for every CPU, whether or not it knows bfloat16.

bitsandbytes' nf4 has fast CPU kernels for AVX512_BF16 alone, and takes 15 to 35 times as long as
float32 elsewhere. torch's kernel for weights of 4 bit needs no more than AVX2. Its 16 steps lie
evenly between the lowest and the highest of 32 weights; the error is that of nf4 or below it
(relative, nf4 with 64 weights to a scale : this one; gaussian weights 0.092 : 0.078, Student's t
with 5 degrees of freedom 0.105 : 0.090), for 5 bits a weight against 4.1.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics_cli.models.kernels.attention import product_dtype
from idefics_cli.models.kernels.linear import SmallLinear

# Weights, along the width, that share a scale and a zero.
GROUP = 32
_STEPS = 15
_MIDDLE = 8
# Up to so many rows the kernel is faster than widening the weights for a matrix product: 0.27 of
# the time of float32 for 1 row, 0.23 for 4, 0.72 for 32, 1.6 for 128, and 2.1 for 512, where
# widening first takes 1.4 (7,168 x 4,096, torch 2.13, one core of a Xeon with AVX512,
# interleaved).
_FEW_ROWS = 192
# Outputs whose weights are widened together: 16 MiB of float32 at a width of 4,096.
_WIDENED = 1024
# Outputs that lie side by side in the kernels' layout: of AVX512, and of AVX2.
_BLOCKS = (64, 32)


class Int4Linear(SmallLinear):
    """A linear layer whose weights are 4-bit numbers, 32 to a scale and a zero.

    Args:
        linear: What it stands in for; see `fits`.
        numbers: From `numbers` of a layer that was made from the same weights; None makes them.

    Attributes:
        weight: (out / block, in, block / 2) uint8. In the lower four bits the outputs of the first
            half of a block, in the upper four those of the second.
        scales: (in / 32, out, 2) bfloat16, the size of a step and the value of step 8.
    """

    NUMBERS = ("weight", "scales")

    weight: Tensor
    scales: Tensor

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        """Tell whether groups and blocks of *linear* come out even."""
        return linear.in_features % GROUP == 0 and linear.out_features % _BLOCKS[0] == 0

    def _quantize(self, weight: Tensor) -> tuple[Tensor, ...]:
        return quantize(weight, block())

    def _products(self, rows: Tensor) -> Tensor:
        few = len(rows) <= _FEW_ROWS and has_kernel()
        return self._by_kernel(rows) if few else self._by_widening(rows)

    def _by_kernel(self, rows: Tensor) -> Tensor:
        # In float32 the kernel is 30 times as slow. Rounding activations to bfloat16 adds a
        # thirtieth of the error that the weights have.
        half = rows.to(torch.bfloat16).contiguous()
        return _product(half, self.weight, self.scales).to(rows.dtype)

    def _by_widening(self, rows: Tensor) -> Tensor:
        wide = rows.to(product_dtype(rows.dtype))
        out = wide.new_empty(len(rows), self.out_features)
        for first in range(0, self.out_features, _WIDENED):
            last = min(first + _WIDENED, self.out_features)
            weight = self._widen(first, last).to(wide.dtype)
            torch.mm(wide, weight, out=out[:, first:last])
        return out.to(rows.dtype)

    def _widen(self, first: int, last: int) -> Tensor:
        """Return (in, last - first) float32, the weights of these outputs."""
        size = 2 * self.weight.shape[2]
        packed = self.weight[first // size : last // size]
        return dequantize(packed, self.scales[:, first:last])


def quantize(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return *weight* as `Int4Linear` keeps it.

    Args:
        weight: (out, in), in any dtype; not changed.
        size: Outputs of a block.

    Returns:
        The packed weights (out / size, in, size / 2) uint8 and the scales (in / 32, out, 2).
    """
    outputs, width = weight.shape
    packed = torch.empty(outputs // size, width, size // 2, dtype=torch.uint8)
    scales = torch.empty(width // GROUP, outputs, 2, dtype=torch.bfloat16)
    # In parts, because a whole layer in float32 takes as much as several quantized ones.
    for first in range(0, outputs, _WIDENED):
        part = weight.detach()[first : first + _WIDENED]
        groups = part.float().reshape(len(part), -1, GROUP)
        low, high = groups.amin(2), groups.amax(2)
        step = ((high - low) / _STEPS).to(torch.bfloat16)
        middle = (low + _MIDDLE * step.float()).to(torch.bfloat16)
        # By the rounded values, which are those that the weights are made from again. A group of
        # equal weights has no steps, and all is in its middle.
        divisor = torch.where(step > 0, step, torch.ones_like(step)).float()
        steps = (groups - middle.float()[..., None]) / divisor[..., None] + _MIDDLE
        numbers = steps.round_().clamp_(0, _STEPS).to(torch.uint8)
        blocks = numbers.reshape(len(part) // size, size, width)
        halves = blocks.transpose(1, 2).reshape(len(blocks), width, 2, size // 2)
        packed[first // size : (first + len(part)) // size] = halves[:, :, 0] | halves[:, :, 1] << 4
        scales[:, first : first + len(part)] = torch.stack((step, middle), 2).transpose(0, 1)
    return packed, scales


def dequantize(packed: Tensor, scales: Tensor) -> Tensor:
    """Return (in, out) float32, the transposed weights that `quantize` made the arguments from."""
    blocks, width, half = packed.shape
    wide = torch.empty(width, blocks, 2, half)
    wide[:, :, 0] = (packed & 15).transpose(0, 1)
    wide[:, :, 1] = (packed >> 4).transpose(0, 1)
    groups = wide.view(width // GROUP, GROUP, 2 * blocks * half)
    step, middle = scales.float().unsqueeze(1).unbind(3)
    return groups.sub_(_MIDDLE).mul_(step).add_(middle).view(width, -1)


@cache
def block() -> int:
    """Return how many outputs lie side by side in the layout of this processor's kernel."""
    return next((size for size in _BLOCKS if _is_right(size)), _BLOCKS[0])


@cache
def has_kernel() -> bool:
    """Tell whether torch's kernel for 4-bit weights is right, and more than a slow stand-in."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX512", "AVX2") and _is_right(block())


def _is_right(size: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(count, 64, generator=generator) for count in (128, 3))
    packed, scales = quantize(weight, size)
    try:
        given = _product(rows.to(torch.bfloat16), packed, scales)
    except (RuntimeError, AttributeError, TypeError):
        # Private functions: another torch may lack them, or take other arguments.
        return False
    exact = functional.linear(rows, dequantize(packed, scales).t())
    return bool((given.float() - exact).norm() < 0.02 * exact.norm())


def _product(rows: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    blocks, width, half = packed.shape
    # torch counts two weights to a byte along the width.
    flat = packed.view(blocks * half * 2, width // 2)
    product: Tensor = multiply(rows, flat, GROUP, scales)
    return product
