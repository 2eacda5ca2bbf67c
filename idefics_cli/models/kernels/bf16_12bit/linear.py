"""Linear layers with bfloat16 weights in 12 bits.

The weights stay exact and take a quarter less memory, and the kernels multiply several rows
together. Time relative to oneDNN with packed weights, on a processor that multiplies bfloat16: 0.75
for 1 row, 0.8 for 8, 1.0 for 16 and 1.06 for 1,000 (960 to 2,560, one thread of an AMD Zen 5).
Relative to torch's for one layer, where oneDNN emulates bfloat16: 0.5 for 1 row,
0.35 for 4, 0.2 for 8, 0.3 for 32 and 0.4 for 64 (4,096 x 4,096, torch 2.13, 3 threads of a Xeon
with AVX512 but not AVX512_BF16, interleaved). With AVX2 alone, the kernel takes 0.7 to 0.9 of
the time of widening the weights for 1,000 rows (960 to 2,560 and back, AMD Zen 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from idefics_cli.models.kernels.bf16_12bit import kernel
from idefics_cli.models.kernels.bf16_12bit.kernel import Compact
from idefics_cli.models.kernels.bf16_12bit.layout import LANES
from idefics_cli.models.kernels.bf16_12bit.products import multiplies_bfloat16, unpacks_to_memory
from idefics_cli.models.kernels.linear import KernelLinear, output_parts

# The lower half of a float32; it is 0 if the number is one of bfloat16.
_LOWER_HALF = 0xFFFF


class CompactLinear(KernelLinear):
    """A linear layer with weights in 12 bits.

    Args:
        linear: The layer to replace.
        compact: The weights of *linear*, from `kernel.pack`.

    Attributes:
        compact: As given.
    """

    # Where the kernel unpacks weights to memory, it multiplies more rows than these, too.
    FEW_ROWS = 128

    def __init__(self, linear: nn.Linear, compact: Compact) -> None:
        super().__init__(linear)
        self.bias: nn.Parameter | None = linear.bias
        # These tensors are no buffers, because `Module.to` would convert buffers to a dtype or
        # device that the kernel cannot read.
        self.compact = compact

    @classmethod
    def passes_self_test(cls) -> bool:
        """Whether the kernels can be compiled here and compute a small example correctly."""
        return kernel.passes_self_test()

    @classmethod
    def fits(cls, linear: nn.Linear) -> bool:
        """Whether the weights of *linear* are bfloat16 numbers and consist of whole groups."""
        return kernel.fits(linear.weight) and cls._as_bfloat16(linear.weight) is not None

    @classmethod
    def layer_for(
        cls,
        module: nn.Module,
        *,
        product_dtype: torch.dtype = torch.float32,
        numbers: Mapping[str, Tensor] | None = None,
    ) -> Self | None:
        """See `table.LayerKernel.layer_for`; None also if `kernel.pack` returns None."""
        if type(module) is not nn.Linear or not kernel.fits(module.weight):
            return None
        weight = cls._as_bfloat16(module.weight)
        compact = None if weight is None else kernel.pack(weight)
        return None if compact is None else cls(module, compact)

    def forward(self, activations: Tensor) -> Tensor:
        """Return the outputs (..., out) of *activations* (..., in), in their dtype."""
        rows = activations.reshape(-1, self.in_features)
        if len(rows) <= self.FEW_ROWS or unpacks_to_memory():
            out = kernel.product(rows, self.compact)
        elif multiplies_bfloat16():
            out = kernel.product_of_many(rows.to(torch.bfloat16), self.compact)
        else:
            out = self._by_widening(rows)
        out = out[:, : self.out_features]
        if self.bias is not None:
            out = out.float() + self.bias.float()
        return out.to(activations.dtype).reshape(*activations.shape[:-1], self.out_features)

    @classmethod
    def _as_bfloat16(cls, weight: Tensor) -> Tensor | None:
        """Return *weight* if it is in bfloat16, else None."""
        # transformers keeps some layers of some models in float32.
        return weight if weight.dtype == torch.bfloat16 else None

    def _by_widening(self, rows: Tensor) -> Tensor:
        wide = rows.float()
        outputs, _ = self.compact.shape
        out = wide.new_empty(len(rows), outputs)
        for part in output_parts(outputs):
            weight = wide.new_empty(self.in_features, part.stop - part.start)
            kernel.unpack(self.compact, part.start // LANES, weight)
            torch.mm(wide, weight, out=out[:, part])
        return out


class ExactCompactLinear(CompactLinear):
    """A linear layer of a float32 model with weights in 12 bits.

    The weights may be in float32 too, if all are bfloat16 numbers, as in most checkpoints. The
    kernels must multiply rows of float32, so a processor that multiplies bfloat16 is no use.
    """

    @classmethod
    def passes_self_test(cls) -> bool:
        """Whether the kernels compute in float32 here, and a small example correctly."""
        return super().passes_self_test() and not multiplies_bfloat16()

    @classmethod
    def _as_bfloat16(cls, weight: Tensor) -> Tensor | None:
        """Return *weight* in bfloat16, or None if that would round it."""
        if weight.dtype != torch.float32:
            return super()._as_bfloat16(weight)
        weight = weight.detach()
        # If the weights are no bfloat16 numbers, the first output shows it.
        for part in (slice(1), *output_parts(len(weight))):
            if bool((weight[part].view(torch.int32) & _LOWER_HALF).any()):
                return None
        return weight.to(torch.bfloat16)
