"""Linear layers with 8-bit weights for the CPU.

bitsandbytes' LLM.int8() rounds activations as well, and on a CPU takes 4 times as long as float32
for one row and 30 times for 64 (one core with AVX512). Here only the weights are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics_cli.models.kernels.attention import product_dtype
from idefics_cli.models.kernels.int8 import kernel as int8_kernel
from idefics_cli.models.kernels.linear import SmallLinear

# Up to so many rows torch's kernel is faster than widening the weights for a matrix product, and
# ours more so: torch's takes 0.44 of the time of float32 for 1 row, 0.52 for 16; 1.15 for 64, and
# 2.9 for 768, where widening first takes 1.05 (4,096 x 6,144, torch 2.13, one core of a Xeon with
# AVX512, interleaved).
_FEW_ROWS = 32
# Outputs whose weights are widened together: 16 MiB of float32 at a width of 4,096.
_WIDENED = 1024
# Where torch puts its own tensors. Its kernel's code for the last rows and outputs reads by
# instructions that crash elsewhere, as in a mapped file (torch 2.13).
_ALIGNMENT = 64


class Int8Linear(SmallLinear):
    """A linear layer whose weights are 8-bit numbers with one scale for each output.

    Args:
        linear: What it stands in for.
        numbers: From `numbers` of a layer that was made from the same weights; None makes them.

    Attributes:
        weight: (out, in) int8.
        scale: (out,) float32.
    """

    NUMBERS = ("weight", "scale")

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, numbers: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(linear, numbers)
        for name in self.NUMBERS:
            setattr(self, name, aligned(getattr(self, name)))

    def _quantize(self, weight: Tensor) -> tuple[Tensor, ...]:
        return quantize(weight)

    def _products(self, rows: Tensor) -> Tensor:
        if len(rows) <= _FEW_ROWS:
            if int8_kernel.is_right() and int8_kernel.fits(self.weight):
                return (int8_kernel.product(rows, self.weight) * self.scale).to(rows.dtype)
            if has_kernel():
                return self._by_torchs_kernel(rows)
        return self._by_widening(rows)

    def _by_torchs_kernel(self, rows: Tensor) -> Tensor:
        # The kernel is slow in float32. Rounding activations to bfloat16 adds a quarter of the
        # error that the 8-bit weights have.
        ones = torch.ones(self.out_features, dtype=torch.bfloat16)
        half = aligned(rows.to(torch.bfloat16).contiguous())
        # Scaled afterwards: a scale that is rounded to bfloat16 would be wrong for its whole row.
        return (torch._weight_int8pack_mm(half, self.weight, ones) * self.scale).to(rows.dtype)

    def _by_widening(self, rows: Tensor) -> Tensor:
        # 8 bits are exact in every dtype that a model runs in.
        dtype, rows = rows.dtype, rows.to(product_dtype(rows.dtype))
        out = rows.new_empty(len(rows), self.out_features)
        buffer = rows.new_empty(min(_WIDENED, self.out_features), self.in_features)
        for first in range(0, self.out_features, _WIDENED):
            weight = self.weight[first : first + _WIDENED]
            wide = buffer[: len(weight)].copy_(weight)
            out[:, first : first + _WIDENED] = functional.linear(rows, wide)
        return (out * self.scale).to(dtype)


def aligned(tensor: Tensor) -> Tensor:
    """Return *tensor*, or a copy of it where torch's kernel can read it."""
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (out, in) as 8-bit numbers from -127 to 127, and the scale (out,) of each row."""
    wide = weight.detach().float()
    highest = wide.abs().amax(dim=1)
    scale = torch.where(highest > 0, highest / 127, torch.ones_like(highest))
    # Never in place: the weight may be mapped from its file, and is float32 already at times.
    return (wide / scale[:, None]).round_().to(torch.int8), scale


@cache
def has_kernel() -> bool:
    """Tell whether torch's kernel for 8-bit weights is there and right."""
    generator = torch.Generator().manual_seed(0)
    weight, scale = quantize(torch.randn(96, 64, generator=generator))
    rows = torch.randn(3, 64, generator=generator).to(torch.bfloat16)
    try:
        given = torch._weight_int8pack_mm(rows, weight, scale.to(torch.bfloat16))
    except (RuntimeError, AttributeError):
        return False
    exact = functional.linear(rows.float(), weight.float()) * scale
    return bool((given.float() - exact).norm() < 0.01 * exact.norm())
