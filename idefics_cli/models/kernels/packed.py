"""Linear layers whose weights lie as the processor's kernels read them.

torch reorders a bfloat16 weight for oneDNN at every call. Done once, a layer reads its weights as
fast as memory gives them: 2.1 times as fast for 1 row, 1.5 for 16, 1.08 for 768, with the same
results (Mistral's seven layers, torch 2.13, AMD Zen 5 with AVX512_BF16). float32 gains nothing
that counts: 0.8 for 1 row, 1.05 for 768 (a Xeon with AVX512).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

# Rows that the layout is made for; one layout serves every number of them equally well.
_ROWS_HINT = 1


class PackedLinear(nn.Module):
    """A linear layer with a packed weight, in place of one that is not needed any more.

    Args:
        linear: What it stands in for.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # No buffer: it has no storage that a module could move or save.
        self._packed = _pack(linear.weight.detach())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, states: Tensor) -> Tensor:
        """Return the outputs (..., out) of *states* (..., in)."""
        return _product(states, self._packed, self.bias)


@cache
def has_kernel() -> bool:
    """Tell whether torch can pack bfloat16 weights, and multiplies rightly by what it packed."""
    generator = torch.Generator().manual_seed(0)
    weight, rows = (
        torch.randn(count, 64, generator=generator).to(torch.bfloat16) for count in (96, 3)
    )
    try:
        given = _product(rows, _pack(weight), None)
    except (RuntimeError, AttributeError, TypeError):
        # Private functions: another torch may lack them, or take other arguments.
        return False
    exact = functional.linear(rows.float(), weight.float())
    return bool((given.float() - exact).norm() < 0.01 * exact.norm())


def pack(model: nn.Module, *, skipped: Sequence[str]) -> None:
    """Pack the weights of the linear layers of *model*, in place, layer by layer.

    Args:
        model: In bfloat16, on the CPU.
        skipped: Full names of the modules to leave, with all that is in them. A weight that
            something else shares, as the embedding does with some heads, is left too: it would
            be in memory twice.
    """
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            path = f"{name}.{child_name}".lstrip(".")
            spared = any(path == skip or path.startswith(f"{skip}.") for skip in skipped)
            # Subclasses do more than a product.
            if type(child) is nn.Linear and not spared and holders[id(child.weight)] == 1:
                setattr(module, child_name, PackedLinear(child))


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
    return packed


def _product(states: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    multiply = torch.ops.mkldnn._linear_pointwise
    product: Tensor = multiply(states.contiguous(), packed, bias, "none", [], "")
    return product
