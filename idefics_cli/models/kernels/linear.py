"""What linear layers with quantized weights have in common, whatever their numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn


class SmallLinear(nn.Module):
    """A linear layer whose weights are small numbers, kept in buffers.

    Args:
        linear: What it stands in for; see `fits`.
        numbers: From `numbers` of a layer that was made from the same weights; None makes them.
    """

    NUMBERS: ClassVar[tuple[str, ...]]
    """Names of the buffers."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, numbers: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if numbers is None:
            numbers = dict(zip(self.NUMBERS, self._quantize(linear.weight), strict=True))
        for name in self.NUMBERS:
            self.register_buffer(name, numbers[name])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        """Tell whether the weights of *linear* can be kept so."""
        return True

    def numbers(self) -> dict[str, Tensor]:
        """Return what the weights became, by name."""
        return {name: getattr(self, name) for name in self.NUMBERS}

    def forward(self, states: Tensor) -> Tensor:
        """Return the outputs (..., out) of *states* (..., in), in their dtype."""
        rows = states.reshape(-1, self.in_features)
        out = self._products(rows).reshape(*states.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def _quantize(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the numbers of *weight* (out, in), in the order of `NUMBERS`."""
        raise NotImplementedError

    def _products(self, rows: Tensor) -> Tensor:
        """Return the products (N, out) of *rows* (N, in), without the bias, in their dtype."""
        raise NotImplementedError
