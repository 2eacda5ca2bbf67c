"""Layers with bfloat16 weights for processors without bfloat16 instructions.

On such processors torch lets oneDNN emulate bfloat16, which takes up to 4 times as long as float32.
torch's product of a matrix and a vector needs no such instructions, and multiplies one row at the
speed of the memory. So few rows are multiplied one by one, and many rows in float32, with the
weights widened part by part.

Time relative to torch's for one layer: 0.72 for 1 row, 0.55 for 2, 1.0 for 16, 0.69 for 32, 0.28
for 256 (7,168 x 4,096, torch 2.13, one core of a Xeon with AVX512 but not AVX512_BF16,
interleaved).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics_cli.models.kernels.linear import KernelLinear, output_parts

# Few rows are multiplied one by one only in layers with at least this many weights: there, reading
# the weights takes most of the time.
_LARGE_WEIGHTS = 2**20
# With at least this many rows, widening the weights costs less time than it saves.
_MANY_ROWS = 24


class WidenedLinear(KernelLinear):
    """A bfloat16 linear layer that avoids oneDNN's emulation; it shares the original weight."""

    FEW_ROWS = 4

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.weight = linear.weight
        self.bias: nn.Parameter | None = linear.bias

    def forward(self, activations: Tensor) -> Tensor:
        """Return the outputs (..., out) of *activations* (..., in)."""
        rows = activations.reshape(-1, self.in_features)
        if len(rows) >= _MANY_ROWS:
            out = self._by_widening(rows)
        elif len(rows) <= self.FEW_ROWS and self.weight.numel() >= _LARGE_WEIGHTS:
            out = self._one_by_one(rows)
        else:
            return functional.linear(activations, self.weight, self.bias)
        return out.reshape(*activations.shape[:-1], self.out_features)

    def _one_by_one(self, rows: Tensor) -> Tensor:
        out = rows.new_empty(len(rows), self.out_features)
        for row, result in zip(rows, out, strict=True):
            if self.bias is None:
                torch.mv(self.weight, row, out=result)
            else:
                torch.addmv(self.bias, self.weight, row, out=result)
        return out

    def _by_widening(self, rows: Tensor) -> Tensor:
        wide = rows.float()
        out = rows.new_empty(len(rows), self.out_features)
        buffer: Tensor | None = None
        for part in output_parts(self.out_features):
            weight = self.weight[part]
            buffer = wide.new_empty(weight.shape) if buffer is None else buffer
            bias = None if self.bias is None else self.bias[part].float()
            out[:, part] = functional.linear(wide, buffer[: len(weight)].copy_(weight), bias)
        return out


class WidenedConv2d(nn.Module):
    """The convolution that embeds the patches of a picture, computed in float32.

    It shares the original weight. oneDNN's emulation of bfloat16 takes 9 times as long (980 x 980
    pixels, 1,152 outputs).

    Args:
        convolution: The layer to replace.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.stride, self.padding = convolution.stride, convolution.padding
        self.weight = convolution.weight
        self.bias: Tensor | None = convolution.bias

    @classmethod
    def passes_self_test(cls) -> bool:
        """Return True: this layer needs nothing but torch."""
        return True

    @classmethod
    def layer_for(
        cls,
        module: nn.Module,
        *,
        product_dtype: torch.dtype = torch.float32,
        numbers: Mapping[str, Tensor] | None = None,
    ) -> Self | None:
        """See `table.LayerKernel.layer_for`; None for groups, dilation and unusual padding."""
        if type(module) is not nn.Conv2d or module.groups != 1 or set(module.dilation) != {1}:
            return None
        return cls(module) if module.padding_mode == "zeros" else None

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the outputs (B, out, height, width) of *pixels* (B, in, height, width)."""
        bias = None if self.bias is None else self.bias.float()
        out = functional.conv2d(
            pixels.float(), self.weight.float(), bias, self.stride, self.padding
        )
        return out.to(pixels.dtype)
