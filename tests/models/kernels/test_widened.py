"""Layers for processors that emulate bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from idefics_cli.models.kernels.widened import WidenedConv2d, WidenedLinear


def test_the_weight_is_shared() -> None:
    linear = nn.Linear(48, 80, dtype=torch.bfloat16)
    layer = WidenedLinear.layer_for(linear)
    assert layer is not None
    assert layer.weight is linear.weight


@pytest.mark.parametrize(
    "unusual", [{"groups": 3}, {"dilation": 2}, {"padding": 1, "padding_mode": "reflect"}]
)
def test_unusual_convolutions_are_left_alone(unusual: dict[str, int | str]) -> None:
    convolution = nn.Conv2d(3, 6, 2, **unusual)  # type: ignore[arg-type] # mixed values
    assert WidenedConv2d.layer_for(convolution) is None
    assert WidenedConv2d.layer_for(nn.Conv2d(3, 6, 2)) is not None
