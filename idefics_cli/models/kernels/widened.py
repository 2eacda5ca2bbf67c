"""Layers in bfloat16 for processors that cannot multiply it.

torch lets oneDNN imitate bfloat16 there, which takes up to 4 times as long as float32. One row is
read and summed by a kernel that needs no such instructions, as fast as memory gives the weights;
many are multiplied in float32, with the weights widened part by part. Of torch's time for one
layer this takes 0.72 for 1 row, 0.55 for 2, 1.0 for 16, 0.69 for 32, 0.28 for 256 (7,168 x 4,096,
torch 2.13, one core of a Xeon with AVX512 but not AVX512_BF16, interleaved).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics_cli.models.kernels import attention as cpu_attention
from idefics_cli.models.kernels.bf16_12bit.linear import compacted

# So few rows are multiplied one by one, each reading all weights, if these are so many that
# reading them is what takes time.
_SINGLE_ROWS = 4
_LARGE_WEIGHT = 2**20
# From so many on, widening the weights costs less than it saves.
_MANY_ROWS = 24
# Outputs whose weights are widened together: 16 MiB of float32 at a width of 4,096.
_WIDENED = 1024


class WidenedLinear(nn.Module):
    """A linear layer that multiplies bfloat16 without oneDNN's imitation of it.

    Args:
        linear: What it stands in for; its weight is shared, not copied.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.bias: nn.Parameter | None = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """Return the outputs (..., out) of *states* (..., in)."""
        rows = states.reshape(-1, self.in_features)
        if len(rows) >= _MANY_ROWS:
            out = self._by_widening(rows)
        elif len(rows) <= _SINGLE_ROWS and self.weight.numel() >= _LARGE_WEIGHT:
            out = self._one_by_one(rows)
        else:
            return functional.linear(states, self.weight, self.bias)
        return out.reshape(*states.shape[:-1], self.out_features)

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
        buffer = wide.new_empty(min(_WIDENED, self.out_features), self.in_features)
        for first in range(0, self.out_features, _WIDENED):
            part = slice(first, first + _WIDENED)
            weight = self.weight[part]
            bias = None if self.bias is None else self.bias[part].float()
            out[:, part] = functional.linear(wide, buffer[: len(weight)].copy_(weight), bias)
        return out


class WidenedConv2d(nn.Module):
    """The convolution that makes patches of a picture, in float32.

    The imitation takes 9 times as long (980 x 980 pixels, 1,152 outputs).

    Args:
        convolution: What it stands in for; its weight is shared, not copied.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.stride, self.padding = convolution.stride, convolution.padding
        self.weight = convolution.weight
        self.bias: Tensor | None = convolution.bias

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the outputs (B, out, height, width) of *pixels* (B, in, height, width)."""
        bias = None if self.bias is None else self.bias.float()
        out = functional.conv2d(
            pixels.float(), self.weight.float(), bias, self.stride, self.padding
        )
        return out.to(pixels.dtype)


def can_widen(convolution: nn.Conv2d) -> bool:
    """Tell whether *convolution* is as plain as `WidenedConv2d`."""
    plain = convolution.groups == 1 and set(convolution.dilation) == {1}
    return plain and convolution.padding_mode == "zeros"


def is_needed() -> bool:
    """Tell whether this processor imitates bfloat16, and has the kernels that are faster."""
    kernels = torch.backends.cpu.get_cpu_capability() in ("AVX512", "AVX2")
    return kernels and not cpu_attention.has_native_bf16()


def widen(model: nn.Module, *, many_rows_in: tuple[str, ...] = ()) -> None:
    """Let the layers of *model* multiply so, in place; large ones for a few rows in 12 bits.

    Args:
        model: In bfloat16, on the CPU.
        many_rows_in: Full names of the modules in which each picture has a thousand rows or more.
    """
    tied = {id(child.weight) for child in model.modules() if isinstance(child, nn.Embedding)}
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            # Subclasses do more than a product.
            if type(child) is nn.Linear:
                # Weights that the input is looked up in stay as they are, so nothing is saved.
                large = child.weight.numel() >= _LARGE_WEIGHT and id(child.weight) not in tied
                few = not f"{path}.{name}".startswith(many_rows_in)
                compact = compacted(child) if large and few else None
                setattr(module, name, compact or WidenedLinear(child))
            elif type(child) is nn.Conv2d and can_widen(child):
                setattr(module, name, WidenedConv2d(child))
