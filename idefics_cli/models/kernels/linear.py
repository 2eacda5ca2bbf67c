"""The base classes of all linear layers that have a CPU kernel.

A row is the vector of activations of one token or patch. A decode step multiplies few rows, a
prefill many. To widen weights means to convert them to a dtype of more bits, in which torch
multiplies whole matrices fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

# Number of outputs whose weights are converted at a time. In float32 and at a width of 4,096,
# these weights take 16 MiB.
_OUTPUTS_AT_A_TIME = 1024


def output_parts(outputs: int) -> Iterator[slice]:
    """Divide *outputs* outputs into slices; the weights of one slice are converted together."""
    for first in range(0, outputs, _OUTPUTS_AT_A_TIME):
        yield slice(first, min(first + _OUTPUTS_AT_A_TIME, outputs))


class KernelLinear(nn.Module):
    """A linear layer with a kernel of its own; implements `table.LayerKernel`.

    Args:
        linear: The layer to replace.
    """

    FEW_ROWS: ClassVar[int] = 0
    """Up to this many rows, the kernel is faster than widening the weights for a matrix product. 0
    means that the layer multiplies every number of rows in the same way."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @classmethod
    def passes_self_test(cls) -> bool:
        """Whether the kernel can be used here and computes a small example correctly."""
        return True

    @classmethod
    def fits(cls, linear: nn.Linear) -> bool:
        """Whether the kernel can compute *linear*."""
        return True

    @classmethod
    def layer_for(
        cls,
        module: nn.Module,
        *,
        product_dtype: torch.dtype = torch.float32,
        numbers: Mapping[str, Tensor] | None = None,
    ) -> Self | None:
        """See `table.LayerKernel.layer_for`."""
        # The exact type is required, because subclasses of `nn.Linear` may do more than a product.
        return cls(module) if type(module) is nn.Linear and cls.fits(module) else None

    def forward(self, activations: Tensor) -> Tensor:
        """Return the outputs (..., out) of *activations* (..., in), in their dtype."""
        raise NotImplementedError


class QuantizedLinear(KernelLinear):
    """A linear layer with quantized weights, which are kept in buffers.

    Args:
        linear: The layer to replace; `fits` accepts it.
        numbers: The quantized weights, as `numbers()` of an earlier layer with the same weights
            returned them; None quantizes the weights of *linear*.
        product_dtype: For many rows of this dtype, the weights are widened to it; for rows of any
            other dtype, to float32.

    Raises:
        ValueError: If *numbers* have other dtypes or shapes than those of *linear* would have.
    """

    NUMBERS: ClassVar[tuple[str, ...]]
    """Names of the buffers."""

    def __init__(
        self,
        linear: nn.Linear,
        numbers: Mapping[str, Tensor] | None = None,
        *,
        product_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(linear)
        self._product_dtype = product_dtype
        if numbers is None:
            numbers = dict(zip(self.NUMBERS, self._quantize(linear.weight), strict=True))
        else:
            self._check(numbers)
        for name in self.NUMBERS:
            self.register_buffer(name, numbers[name])
        self.bias: nn.Parameter | None = linear.bias

    @classmethod
    def layer_for(
        cls,
        module: nn.Module,
        *,
        product_dtype: torch.dtype = torch.float32,
        numbers: Mapping[str, Tensor] | None = None,
    ) -> Self | None:
        """See `table.LayerKernel.layer_for`."""
        if type(module) is not nn.Linear or not cls.fits(module):
            return None
        return cls(module, numbers, product_dtype=product_dtype)

    @classmethod
    def layout(cls) -> str | int | None:
        """Return a key of the order of the numbers in memory; None if all machines share one."""
        return None

    def numbers(self) -> dict[str, Tensor]:
        """Return the quantized weights by name."""
        return {name: getattr(self, name) for name in self.NUMBERS}

    def forward(self, activations: Tensor) -> Tensor:
        """Return the outputs (..., out) of *activations* (..., in), in their dtype."""
        rows = activations.reshape(-1, self.in_features)
        out = self._products(rows).reshape(*activations.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def _check(self, numbers: Mapping[str, Tensor]) -> None:
        # A kernel computes addresses from the shape of the layer, so it would read other memory.
        for name, (dtype, *shape) in zip(self.NUMBERS, self._forms(), strict=True):
            found = numbers[name]
            if found.dtype != dtype or found.shape != torch.Size(shape):
                raise ValueError(f"`{name}` of a layer is {found.dtype} {tuple(found.shape)}")

    def _forms(self) -> tuple[tuple[torch.dtype, *tuple[int, ...]], ...]:
        """Return the dtype and the shape of each number, in the order of `NUMBERS`."""
        raise NotImplementedError

    def _quantize(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the numbers of *weight* (out, in), in the order of `NUMBERS`."""
        raise NotImplementedError

    def _products(self, rows: Tensor) -> Tensor:
        """Return the products (N, out) of *rows* (N, in), without the bias, in their dtype."""
        raise NotImplementedError

    def _widened_dtype(self, rows: Tensor) -> torch.dtype:
        """Return the dtype in which many *rows* are multiplied."""
        return rows.dtype if rows.dtype == self._product_dtype else torch.float32
