"""Linear layers with 8-bit weights for the CPU.

These layers round the weights, and the activations to 16 bits or not at all. bitsandbytes'
LLM.int8() rounds activations to 8 bits, and on a CPU takes 4 times as long as float32 for one row
and 30 times for 64 (one core with AVX512).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics_cli.models.kernels.huge_pages import empty_bytes
from idefics_cli.models.kernels.int8 import dots, kernel, panels
from idefics_cli.models.kernels.linear import QuantizedLinear, output_parts

# torch's kernel reads this many numbers along the width at a time. If the width is not a multiple
# of it, the kernel returns nonsense or crashes (torch 2.13).
_TORCH_STEP = 16
# The addresses of torch's own tensors are multiples of this many bytes. For the last rows and
# outputs its kernel uses instructions that crash at other addresses, as in a mapped file (torch
# 2.13).
_ALIGNMENT = 64


class Int8Linear(QuantizedLinear):
    """A linear layer whose weights are 8-bit numbers with one scale for each output.

    This class widens the weights for every product; its subclasses have kernels for few rows.

    Attributes:
        weight: (out, in) int8.
        scale: (out,) float32.
    """

    NUMBERS = ("weight", "scale")

    weight: Tensor
    scale: Tensor

    def __init__(
        self,
        linear: nn.Linear,
        numbers: Mapping[str, Tensor] | None = None,
        *,
        product_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(linear, numbers, product_dtype=product_dtype)
        for name in self.NUMBERS:
            setattr(self, name, aligned(getattr(self, name)))

    def _forms(self) -> tuple[tuple[torch.dtype, *tuple[int, ...]], ...]:
        outputs, width = self.out_features, self.in_features
        return (torch.int8, outputs, width), (torch.float32, outputs)

    def _quantize(self, weight: Tensor) -> tuple[Tensor, ...]:
        return quantize(weight)

    def _products(self, rows: Tensor) -> Tensor:
        # Every dtype in which a model runs holds 8-bit numbers exactly.
        dtype, rows = rows.dtype, rows.to(self._widened_dtype(rows))
        out = rows.new_empty(len(rows), self.out_features)
        buffer: Tensor | None = None
        for part in output_parts(self.out_features):
            weight = self.weight[part]
            buffer = rows.new_empty(weight.shape) if buffer is None else buffer
            wide = buffer[: len(weight)].copy_(weight)
            out[:, part] = functional.linear(rows, wide)
        return (out * self.scale).to(dtype)


class CompiledInt8Linear(Int8Linear):
    """An `Int8Linear` that multiplies few rows by a kernel compiled for this processor."""

    # A kernel is used for up to this number of rows. For more rows, the weights are widened first,
    # and then multiplied as usual. The time of torch's kernel, relative to a product in float32, is
    # 0.44 for 1 row, 0.52 for 16, 1.15 for 64 and 2.9 for 768; the compiled kernel is faster.
    # Widening first takes 1.05 for 768 rows (4,096 x 6,144, torch 2.13, one core of a Xeon with
    # AVX512, interleaved).
    FEW_ROWS = 32
    # With `dots.py`, products of 64 rows take as long as with weights widened to bfloat16. With
    # weights widened to float32 they take 4 times as long, those of 256 rows 3 times (4,096 x
    # 4,096, one thread of an AMD Zen 5); on a Zen 3, which has no products of bytes, 2 times.
    FEW_ROWS_BESIDE_BFLOAT16 = 64

    @classmethod
    def passes_self_test(cls) -> bool:
        """Whether the kernels can be compiled here and compute small examples correctly."""
        return kernel.passes_self_test() and panels.passes_self_test()

    @classmethod
    def fits(cls, linear: nn.Linear) -> bool:
        """Whether the kernel can multiply by a weight of this shape; see `kernel.fits`."""
        return kernel.fits(linear.weight)

    def forward(self, activations: Tensor) -> Tensor:
        """Return the outputs (..., out) of *activations* (..., in), in their dtype."""
        rows = activations.reshape(-1, self.in_features)
        if len(rows) < panels.FEWEST_ROWS or not panels.fits(self.out_features):
            return super().forward(activations)
        bias = None if self.bias is None else self.bias.float()
        out = panels.product(rows.float(), self.weight, self.scale, bias)
        return out.to(activations.dtype).reshape(*activations.shape[:-1], self.out_features)

    def _products(self, rows: Tensor) -> Tensor:
        if self._are_many(rows):
            return super()._products(rows)
        return (kernel.product(rows, self.weight) * self.scale).to(rows.dtype)

    def _are_many(self, rows: Tensor) -> bool:
        """Whether *rows* are multiplied sooner by widened weights."""
        if not dots.fits(self.out_features, self.in_features):
            return len(rows) > self.FEW_ROWS
        is_bfloat16 = self._widened_dtype(rows) is torch.bfloat16
        return is_bfloat16 and len(rows) > self.FEW_ROWS_BESIDE_BFLOAT16


class TorchInt8Linear(Int8Linear):
    """An `Int8Linear` that multiplies few rows by torch's kernel."""

    # See the comment on `CompiledInt8Linear.FEW_ROWS` for the measured times.
    FEW_ROWS = 32

    @classmethod
    def passes_self_test(cls) -> bool:
        """Whether torch's kernel for 8-bit weights exists and computes correctly."""
        return _torchs_kernel_passes_self_test()

    @classmethod
    def fits(cls, linear: nn.Linear) -> bool:
        """Whether the width of *linear* is a multiple of what the kernel reads at a time."""
        return linear.in_features % _TORCH_STEP == 0

    def _products(self, rows: Tensor) -> Tensor:
        if len(rows) > self.FEW_ROWS:
            return super()._products(rows)
        # The kernel is slow in float32. Rounding activations to bfloat16 adds a quarter of the
        # error that the 8-bit weights have.
        half = aligned(rows.to(torch.bfloat16).contiguous())
        ones = torch.ones(self.out_features, dtype=torch.bfloat16)
        # The kernel rounds its scales to bfloat16, which would shift all weights of an output. So
        # it gets ones, and the products are scaled here.
        return (torch._weight_int8pack_mm(half, self.weight, ones) * self.scale).to(rows.dtype)


def aligned(tensor: Tensor) -> Tensor:
    """Return *tensor* if torch's kernel can read it at its address, else a copy."""
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return *weight* (out, in) as int8 from -127 to 127, and the scale (out,) of each output."""
    wide = weight.detach().float()
    highest = wide.abs().amax(dim=1)
    # If a weight is NaN, its scale is NaN, too, so a reply shows the damage.
    scale = torch.where(highest == 0, torch.ones_like(highest), highest / 127)
    # The division makes a new tensor, because *wide* can be the weight itself: `float()` returns a
    # float32 weight unchanged, and this weight may be mapped from its file.
    numbers = (wide / scale[:, None]).round_()
    return empty_bytes(*numbers.shape).view(torch.int8).copy_(numbers), scale


def _torchs_kernel_passes_self_test() -> bool:
    generator = torch.Generator().manual_seed(0)
    weight, scale = quantize(torch.randn(96, 64, generator=generator))
    rows = torch.randn(3, 64, generator=generator).to(torch.bfloat16)
    try:
        product = torch._weight_int8pack_mm(rows, weight, scale.to(torch.bfloat16))
    except (RuntimeError, AttributeError):
        return False
    exact = functional.linear(rows.float(), weight.float()) * scale
    return bool((product.float() - exact).norm() < 0.01 * exact.norm())
