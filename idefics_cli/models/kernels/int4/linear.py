"""Linear layers with 4-bit weights for every CPU, with or without bfloat16 instructions.

bitsandbytes has fast CPU kernels for nf4 only on processors with AVX512_BF16; on others, nf4 takes
15 to 35 times as long as float32. torch's kernel for 4-bit weights needs only AVX2. Its 16 values
are evenly spaced between the lowest and the highest of 32 weights. The relative error is not larger
than that of nf4 with 64 weights to a scale: 0.078 against 0.092 for gaussian weights, 0.090 against
0.105 for weights of Student's t with 5 degrees of freedom. The format takes 5 bits for a weight,
nf4 takes 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics_cli.models.kernels.linear import QuantizedLinear, output_parts

# This many weights along the width share a step and a middle value. Smaller groups would be more
# exact, but take more memory.
GROUP = 32
_STEPS = 15
_MIDDLE = 8
# torch's AVX512 kernel reads the weights of 64 outputs side by side, and its AVX2 kernel those of
# 32.
_BLOCKS = (64, 32)


class Int4Linear(QuantizedLinear):
    """A linear layer whose weights are 4-bit numbers; 32 of them share a step and a middle value.

    This class widens the weights for every product; its subclass has a kernel for few rows.

    Attributes:
        weight: (out / block, in, block / 2) uint8. The lower four bits hold the outputs of the
            first half of a block, the upper four those of the second half.
        scales: (in / 32, out, 2) bfloat16: the size of a step, and the value of step 8.
    """

    NUMBERS = ("weight", "scales")

    weight: Tensor
    scales: Tensor

    @classmethod
    def fits(cls, linear: nn.Linear) -> bool:
        """Whether *linear* consists of whole groups and whole blocks."""
        return linear.in_features % GROUP == 0 and linear.out_features % _BLOCKS[0] == 0

    @classmethod
    def layout(cls) -> int:
        """Return how many outputs are stored side by side."""
        return _BLOCKS[0]

    def _forms(self) -> tuple[tuple[torch.dtype, *tuple[int, ...]], ...]:
        outputs, width, size = self.out_features, self.in_features, self.layout()
        weight = (torch.uint8, outputs // size, width, size // 2)
        return weight, (torch.bfloat16, width // GROUP, outputs, 2)

    def _quantize(self, weight: Tensor) -> tuple[Tensor, ...]:
        return quantize(weight, self.layout())

    def _products(self, rows: Tensor) -> Tensor:
        wide = rows.to(self._widened_dtype(rows))
        out = wide.new_empty(len(rows), self.out_features)
        for part in output_parts(self.out_features):
            torch.mm(wide, self._widen(part).to(wide.dtype), out=out[:, part])
        return out.to(rows.dtype)

    def _widen(self, part: slice) -> Tensor:
        """Return (in, outputs of *part*) float32, the transposed weights."""
        size = 2 * self.weight.shape[2]
        packed = self.weight[part.start // size : part.stop // size]
        return dequantize(packed, self.scales[:, part])


class TorchInt4Linear(Int4Linear):
    """An `Int4Linear` that multiplies few rows by torch's kernel."""

    # torch's kernel is used for up to this number of rows. For more rows, the weights are widened
    # first, and then multiplied as usual. The time of the kernel, relative to a product in float32,
    # is 0.27 for 1 row, 0.23 for 4, 0.72 for 32, 1.6 for 128 and 2.1 for 512. Widening first takes
    # 1.4 for 512 rows (7,168 x 4,096, torch 2.13, one core of a Xeon with AVX512, interleaved).
    FEW_ROWS = 192

    @classmethod
    def passes_self_test(cls) -> bool:
        """Whether torch's kernel for 4-bit weights exists and computes correctly."""
        return _torchs_block() is not None

    @classmethod
    def layout(cls) -> int:
        """Return how many outputs torch's kernel on this processor reads side by side."""
        return _torchs_block() or super().layout()

    def _products(self, rows: Tensor) -> Tensor:
        if len(rows) > self.FEW_ROWS:
            return super()._products(rows)
        # The kernel takes 30 times as long with float32 activations. Rounding them to bfloat16
        # adds a thirtieth of the error that the weights have.
        half = rows.to(torch.bfloat16).contiguous()
        return _product(half, self.weight, self.scales).to(rows.dtype)


def quantize(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return *weight* as `Int4Linear` keeps it.

    Args:
        weight: (out, in), in any dtype; not changed.
        size: Number of outputs of a block.

    Returns:
        The packed weights (out / size, in, size / 2) uint8 and the scales (in / 32, out, 2).
    """
    outputs, width = weight.shape
    packed = torch.empty(outputs // size, width, size // 2, dtype=torch.uint8)
    scales = torch.empty(width // GROUP, outputs, 2, dtype=torch.bfloat16)
    # The layer is quantized in parts, because a whole layer in float32 takes as much memory as
    # several quantized layers.
    for part in output_parts(outputs):
        groups = weight.detach()[part].float().reshape(part.stop - part.start, -1, GROUP)
        low, high = groups.amin(2), groups.amax(2)
        step = ((high - low) / _STEPS).to(torch.bfloat16)
        middle = (low + _MIDDLE * step.float()).to(torch.bfloat16)
        # The kernel computes with the rounded step and middle, so the numbers are chosen for the
        # rounded values. In a group of equal weights the step is 0, so 1 is the divisor instead.
        divisor = torch.where(step > 0, step, torch.ones_like(step)).float()
        steps = (groups - middle.float()[..., None]) / divisor[..., None] + _MIDDLE
        numbers = steps.round_().clamp_(0, _STEPS).to(torch.uint8)
        blocks = numbers.reshape(-1, size, width)
        halves = blocks.transpose(1, 2).reshape(len(blocks), width, 2, size // 2)
        packed[part.start // size : part.stop // size] = halves[:, :, 0] | halves[:, :, 1] << 4
        scales[:, part] = torch.stack((step, middle), 2).transpose(0, 1)
    return packed, scales


def dequantize(packed: Tensor, scales: Tensor) -> Tensor:
    """Return the transposed weights (in, out) in float32, from the results of `quantize`."""
    blocks, width, half = packed.shape
    wide = torch.empty(width, blocks, 2, half)
    wide[:, :, 0] = (packed & 15).transpose(0, 1)
    wide[:, :, 1] = (packed >> 4).transpose(0, 1)
    groups = wide.view(width // GROUP, GROUP, 2 * blocks * half)
    step, middle = scales.float().unsqueeze(1).unbind(3)
    return groups.sub_(_MIDDLE).mul_(step).add_(middle).view(width, -1)


def _torchs_block() -> int | None:
    """Return how many outputs torch's kernel reads side by side; None if it is missing or wrong."""
    return next((size for size in _BLOCKS if _computes_an_example(size)), None)


def _computes_an_example(size: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(count, 64, generator=generator) for count in (128, 3))
    packed, scales = quantize(weight, size)
    try:
        product = _product(rows.to(torch.bfloat16), packed, scales)
    except (RuntimeError, AttributeError, TypeError):
        # The function is private: another torch may lack it, or take other arguments.
        return False
    exact = functional.linear(rows, dequantize(packed, scales).t())
    return bool((product.float() - exact).norm() < 0.02 * exact.norm())


def _product(rows: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    blocks, width, half = packed.shape
    # torch wants the shape (out, in / 2), as if a byte held two neighbouring weights of one output.
    flat = packed.view(blocks * half * 2, width // 2)
    product: Tensor = multiply(rows, flat, GROUP, scales)
    return product
