"""The two linear layers of a vision layer, with the activation computed by the first product.

torch computes the tanh form of GELU in bfloat16 number by number: for 1,024 patches of SigLIP it
takes 0.4 of the time of the product before it. oneDNN computes it with vectors while it writes the
product, before the product is rounded. Both layers with the activation take 0.84 of the time (one
thread, torch 2.13, AMD Zen 5 with AVX512_BF16).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# The algorithms of oneDNN's GELU by `hidden_act` of the configuration.
_ALGORITHMS = {"gelu": "none", "gelu_pytorch_tanh": "tanh"}


class GeluMlp(nn.Module):
    """A linear layer, GELU, and a linear layer, all in bfloat16; the weights stay as they are.

    Args:
        mlp: The module to replace; see `layer_for`.
        algorithm: "tanh" for GELU's tanh form, "none" for the exact one.
    """

    def __init__(self, mlp: nn.Module, algorithm: str) -> None:
        super().__init__()
        self.fc1, self.fc2 = cast("nn.Linear", mlp.fc1), cast("nn.Linear", mlp.fc2)
        self._algorithm = algorithm

    @classmethod
    def passes_self_test(cls) -> bool:
        """Whether torch has the product with GELU here and computes it correctly."""
        return all(_is_right(algorithm) for algorithm in _ALGORITHMS.values())

    @classmethod
    def layer_for(
        cls,
        module: nn.Module,
        *,
        product_dtype: torch.dtype = torch.float32,
        numbers: Mapping[str, Tensor] | None = None,
    ) -> Self | None:
        """See `table.LayerKernel.layer_for`. *module* has `fc1`, `fc2` and a configuration."""
        algorithm = _ALGORITHMS.get(getattr(getattr(module, "config", None), "hidden_act", ""))
        layers = (getattr(module, "fc1", None), getattr(module, "fc2", None))
        if algorithm is None or any(type(layer) is not nn.Linear for layer in layers):
            return None
        is_bf16 = all(weight.dtype == torch.bfloat16 for weight in module.parameters())
        return cls(module, algorithm) if is_bf16 else None

    def forward(self, activations: Tensor) -> Tensor:
        """Return the outputs (..., out) of *activations* (..., in), both in bfloat16."""
        wide = _product(activations, self.fc1, "gelu", self._algorithm)
        # This product adds its bias itself; that of `functional.linear` first copies it into all
        # rows of the result.
        return _product(wide, self.fc2, "none", "")


def _product(activations: Tensor, linear: nn.Linear, activation: str, algorithm: str) -> Tensor:
    multiply = torch.ops.mkldnn._linear_pointwise
    product: Tensor = multiply(
        activations.contiguous(), linear.weight, linear.bias, activation, [], algorithm
    )
    return product


def _is_right(algorithm: str) -> bool:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 96, dtype=torch.bfloat16)
    rows = torch.randn(33, 64, generator=generator).to(torch.bfloat16)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(96, 64, generator=generator))
        linear.bias.copy_(torch.randn(96, generator=generator))
        try:
            product = _product(rows, linear, "gelu", algorithm)
        except (RuntimeError, AttributeError, TypeError):
            # The function is private: another torch may lack it, or take other arguments.
            return False
        wide = functional.linear(rows.float(), linear.weight.float(), linear.bias.float())
        exact = functional.gelu(wide, approximate=algorithm)
    return bool((product.float() - exact).norm() < 0.01 * exact.norm())
