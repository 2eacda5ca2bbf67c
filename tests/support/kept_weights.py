"""What tests of kept quantized weights compare."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def tensors(model: object) -> dict[str, Tensor]:
    """Return all weights and buffers of *model* by name."""
    assert isinstance(model, nn.Module)
    found = {**model.state_dict(), **dict(model.named_buffers())}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def assert_same(one: object, other: object) -> None:
    """Check that two models have equal weights of equal dtypes."""
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape), name
        assert torch.equal(tensor, theirs[name]), name
