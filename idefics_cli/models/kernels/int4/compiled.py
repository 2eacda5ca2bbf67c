"""Linear layers with 4-bit weights whose kernel is compiled for this processor.

Of the time of torch's kernel for 4 bit (see `int4.py`) it takes 0.57 for 1 row, 0.46 for 8 and
0.39 for 32; of the time of float32 0.21 for 1 row, 0.39 for 32 and 0.96 for 512 (14,336 x 4,096,
torch 2.13, 2 threads of a Xeon with AVX512, interleaved). Weights are rounded alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idefics_cli.models.kernels.int4 import kernel as int4_kernel
from idefics_cli.models.kernels.int4.kernel import GROUP, GROUP_BYTES, LANES
from idefics_cli.models.kernels.linear import SmallLinear

_STEPS = 15
# Outputs that are rounded together: 16 MiB of float32 at a width of 4,096.
_PART = 1024


class CompiledInt4Linear(SmallLinear):
    """A linear layer whose weights are 4-bit numbers, 32 to a step and a lowest value.

    Args:
        linear: What it stands in for; see `fits`.
        numbers: From `numbers` of a layer that was made from the same weights; None makes them.

    Attributes:
        packed: (out / 16, in / 32, 320) uint8, see `int4_kernel.pack`.
    """

    NUMBERS = ("packed",)

    packed: Tensor

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        """Tell whether groups and blocks of *linear* come out even."""
        return linear.in_features % GROUP == 0 and linear.out_features % LANES == 0

    def _quantize(self, weight: Tensor) -> tuple[Tensor, ...]:
        return (quantize(weight),)

    def _products(self, rows: Tensor) -> Tensor:
        return int4_kernel.product(rows, self.packed).to(rows.dtype)


def quantize(weight: Tensor) -> Tensor:
    """Return *weight* (out, in), which is not changed, as `CompiledInt4Linear` keeps it."""
    outputs, width = weight.shape
    packed = torch.empty(outputs // LANES, width // GROUP, GROUP_BYTES, dtype=torch.uint8)
    # In parts, because a whole layer in float32 takes as much as several quantized ones.
    for first in range(0, outputs, _PART):
        part = weight.detach()[first : first + _PART].float()
        groups = part.reshape(len(part), -1, GROUP)
        lowest = groups.amin(2).to(torch.bfloat16)
        step = ((groups.amax(2) - lowest.float()) / _STEPS).to(torch.bfloat16)
        # By the rounded values, which are those that the weights are made from again. A group of
        # equal weights has no steps.
        divisor = torch.where(step > 0, step, torch.ones_like(step)).float()
        steps = (groups - lowest.float()[..., None]) / divisor[..., None]
        numbers = steps.round_().clamp_(0, _STEPS).to(torch.uint8).reshape(part.shape)
        blocks = slice(first // LANES, (first + len(part)) // LANES)
        packed[blocks] = int4_kernel.pack(numbers, step, lowest)
    return packed
