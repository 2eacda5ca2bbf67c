"""Linear layers whose weights are stored in the order in which the processor's kernels read them.

torch reorders a bfloat16 weight for oneDNN at every call. If the weight is reordered only once, a
layer is limited by memory bandwidth alone: it is 2.1 times as fast for 1 row, 1.5 for 16, 1.08 for
768, with the same results (Mistral's seven layers, torch 2.13, AMD Zen 5 with AVX512_BF16). In
float32 packing does not pay: 0.8 times as fast for 1 row, 1.05 for 768 (a Xeon with AVX512).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics_cli.models.kernels.linear import KernelLinear

# oneDNN chooses the layout of a weight for products with this number of rows. Other numbers made no
# product faster.
_ROWS_HINT = 1


class PackedLinear(KernelLinear):
    """A linear layer with a packed weight; the original weight can be freed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        # A packed weight is no buffer, because it has no storage that a module could move or save.
        self._packed = _pack(linear.weight.detach())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    @classmethod
    def passes_self_test(cls) -> bool:
        """Whether torch can pack bfloat16 weights here and multiplies packed ones correctly."""
        return _passes_self_test()

    def forward(self, activations: Tensor) -> Tensor:
        """Return the outputs (..., out) of *activations* (..., in)."""
        return _product(activations, self._packed, self.bias)


def _passes_self_test() -> bool:
    generator = torch.Generator().manual_seed(0)
    weight, rows = (
        torch.randn(count, 64, generator=generator).to(torch.bfloat16) for count in (96, 3)
    )
    try:
        product = _product(rows, _pack(weight), None)
    except (RuntimeError, AttributeError, TypeError):
        # The functions are private: another torch may lack them, or take other arguments.
        return False
    exact = functional.linear(rows.float(), weight.float())
    return bool((product.float() - exact).norm() < 0.01 * exact.norm())


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
    return packed


def _product(activations: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    multiply = torch.ops.mkldnn._linear_pointwise
    product: Tensor = multiply(activations.contiguous(), packed, bias, "none", [], "")
    return product
