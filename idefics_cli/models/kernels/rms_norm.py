"""A root mean square norm that makes fewer passes over the activations than transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn


class CpuRMSNorm(nn.Module):
    """A root mean square norm (arXiv:1910.07467) that replaces one of transformers.

    Time relative to transformers' norm: 0.4 for 16 rows of 192 numbers in float32, 0.5 for 480
    such rows, 0.5 for one row of 4,096 in bfloat16 (one core of a Xeon with AVX512).

    Args:
        norm: The norm to replace; its weight has the dtype of the activations.
    """

    weight: Tensor

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = norm.weight  # type: ignore[assignment]  # a parameter, not a submodule
        # This tensor is no buffer, because loading would look for a buffer in the checkpoint, which
        # does not hold it.
        self._epsilon = torch.tensor(float(norm.variance_epsilon))  # type: ignore[arg-type]  # a float
        self._share = 1 / self.weight.numel()

    @classmethod
    def passes_self_test(cls) -> bool:
        """Return True: this norm needs nothing but torch."""
        return True

    @classmethod
    def layer_for(
        cls,
        module: nn.Module,
        *,
        product_dtype: torch.dtype = torch.float32,
        numbers: Mapping[str, Tensor] | None = None,
    ) -> Self | None:
        """See `table.LayerKernel.layer_for`.

        *module* is of a class in `FamilySpec.rms_norms`. All these classes compute in float32, and
        round to the dtype of the activations before they multiply by the weight
        (transformers 5.23).
        """
        return cls(module)

    def forward(self, activations: Tensor) -> Tensor:
        """Return *activations* (..., width) divided by their root mean square and scaled."""
        wide = activations.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        mean = torch.addcmul(self._epsilon, length, length, value=self._share)
        return (wide * torch.rsqrt(mean)).to(activations.dtype) * self.weight
