"""Linear layers with 4-bit weights whose kernel is compiled for this processor.

A weight takes 4.5 bits. The relative error is that of the weights for torch's kernel, which take 5
(see `linear.py`): 0.079 for gaussian weights. Time relative to that kernel: 0.57 for 1 row, 0.46
for 8 and 0.39 for 32. Time relative to float32: 0.21 for 1 row, 0.39 for 32 and 0.96 for 512
(14,336 x 4,096, with 5 bits, torch 2.13, 2 threads of a Xeon with AVX512, interleaved).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idefics_cli.models.kernels.huge_pages import empty_bytes
from idefics_cli.models.kernels.int4 import kernel, layout
from idefics_cli.models.kernels.int4.layout import GROUP, LANES, LARGEST_STEP, ZERO_PARTS
from idefics_cli.models.kernels.linear import QuantizedLinear, output_parts

_STEPS = 15
# The zero of weights from -8 to 7 steps.
_MIDDLE_ZERO = 8 * ZERO_PARTS


class CompiledInt4Linear(QuantizedLinear):
    """A linear layer whose weights are 4-bit numbers.

    Each group of 32 weights shares a step and a zero.

    Attributes:
        packed: (out / 16, in * 9 + 64) uint8, see `layout.pack`.
    """

    NUMBERS = ("packed",)

    packed: Tensor

    @classmethod
    def passes_self_test(cls) -> bool:
        """Whether the kernel can be compiled here and computes a small example correctly."""
        return kernel.passes_self_test()

    @classmethod
    def fits(cls, linear: nn.Linear) -> bool:
        """Whether *linear* consists of whole groups and whole blocks."""
        return linear.in_features % GROUP == 0 and linear.out_features % LANES == 0

    @classmethod
    def layout(cls) -> str:
        """Return the name of this layout; the layouts for torch's kernel are numbers."""
        return "compiled"

    def _forms(self) -> tuple[tuple[torch.dtype, *tuple[int, ...]], ...]:
        size = layout.bytes_of_block(self.in_features)
        return ((torch.uint8, self.out_features // LANES, size),)

    def _quantize(self, weight: Tensor) -> tuple[Tensor, ...]:
        return (quantize(weight),)

    def _products(self, rows: Tensor) -> Tensor:
        return kernel.product(rows, self.packed).to(rows.dtype)


def quantize(weight: Tensor) -> Tensor:
    """Return *weight* (out, in), which is not changed, as `CompiledInt4Linear` keeps it."""
    outputs, width = weight.shape
    packed = empty_bytes(outputs // LANES, layout.bytes_of_block(width))
    # The layer is quantized in parts, because a whole layer in float32 takes as much memory as
    # several quantized layers.
    for part in output_parts(outputs):
        groups = weight.detach()[part].float().reshape(part.stop - part.start, -1, GROUP)
        blocks = slice(part.start // LANES, part.stop // LANES)
        packed[blocks] = layout.pack(*_rounded(groups))
    return packed


def _rounded(groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return *groups* (out, groups, 32) float32 as arguments of `layout.pack`."""
    # A zero stands for 0, so this must lie between the lowest value and the highest.
    lowest, highest = groups.amin(2).clamp_(max=0), groups.amax(2).clamp_(min=0)
    steps = (highest - lowest) / _STEPS
    # If a weight is NaN, so is the scale of its output, and a reply shows the damage.
    scale = steps.amax(1, keepdim=True) / LARGEST_STEP
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = layout.step_codes(steps / scale)
    step = layout.steps_of(codes) * scale
    # The step may be rounded down, so the middle of the numbers stands for the middle of the group.
    zeros = _STEPS / 2 - (lowest + highest) / 2 / step
    zeros = zeros.mul_(ZERO_PARTS).round_().clamp_(0, 255)
    # A group whose weights are far smaller than the smallest step becomes exactly 0.
    zeros = zeros.where(steps >= scale * (layout.SMALLEST_STEP / 2), _MIDDLE_ZERO)
    numbers = (groups / step[..., None]).add_((zeros / ZERO_PARTS)[..., None])
    numbers = numbers.round_().clamp_(0, _STEPS).to(torch.uint8).flatten(1)
    return numbers, codes, zeros.to(torch.uint8), scale.flatten()
