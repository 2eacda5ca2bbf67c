"""Linear layers in bfloat16 that are kept in 12 bits, for processors that cannot multiply bfloat16.

Nothing is lost, a quarter less is to be read and kept, and a few rows are multiplied together.
Of torch's time for one layer this takes 0.5 for 1 row, 0.35 for 4, 0.2 for 8, 0.3 for 32 and 0.4
for 64, where oneDNN imitates bfloat16 (4,096 x 4,096, torch 2.13, 3 threads of a Xeon with AVX512
but not AVX512_BF16, interleaved).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idefics_cli.models.kernels.bf16_12bit import kernel as compact_kernel
from idefics_cli.models.kernels.bf16_12bit.code import LANES
from idefics_cli.models.kernels.bf16_12bit.kernel import Compact

# Up to so many rows the kernel is faster than a product with weights that are widened for it.
_FEW_ROWS = 128
# Outputs whose weights are widened together: 16 MiB of float32 at a width of 4,096.
_WIDENED = 1024


class CompactLinear(nn.Module):
    """A linear layer whose weights are in 12 bits.

    Args:
        linear: What it stands in for.
        compact: Its weights, from `compact_kernel.pack`.
    """

    def __init__(self, linear: nn.Linear, compact: Compact) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias: nn.Parameter | None = linear.bias
        # No buffers: a module would give them another dtype or place than the kernels read.
        self._compact = compact

    def forward(self, states: Tensor) -> Tensor:
        """Return the outputs (..., out) of *states* (..., in), in their dtype."""
        rows = states.reshape(-1, self.in_features)
        few = len(rows) <= _FEW_ROWS
        out = compact_kernel.product(rows, self._compact) if few else self._by_widening(rows)
        if self.bias is not None:
            out += self.bias.float()
        return out.to(states.dtype).reshape(*states.shape[:-1], self.out_features)

    def _by_widening(self, rows: Tensor) -> Tensor:
        wide = rows.float()
        out = wide.new_empty(len(rows), self.out_features)
        for first in range(0, self.out_features, _WIDENED):
            count = min(_WIDENED, self.out_features - first)
            part = wide.new_empty(self.in_features, count)
            compact_kernel.unpack(self._compact, first // LANES, part)
            torch.mm(wide, part, out=out[:, first : first + count])
        return out


def compacted(linear: nn.Linear) -> CompactLinear | None:
    """Return a layer with the weights of *linear* in 12 bits, or None where that cannot be.

    Args:
        linear: On the CPU; not changed.
    """
    # transformers keeps some layers of some models in float32.
    fits = linear.weight.dtype == torch.bfloat16 and compact_kernel.fits(linear.weight)
    if not fits or not compact_kernel.is_right():
        return None
    compact = compact_kernel.pack(linear.weight)
    return None if compact is None else CompactLinear(linear, compact)
