"""Asynchronous copies of small tensors between the host and a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Sequence[int], device: torch.device) -> Tensor:
    """Return *values* (N,) on *device*; the copy to a GPU does not block the host."""
    is_cuda = device.type == "cuda"
    # The copy may still read `staging` after this function has returned. This is safe, because
    # CUDA's host allocator does not reuse pinned memory before the copy has ended.
    staging = torch.tensor(values, dtype=torch.long, pin_memory=is_cuda)
    return staging.to(device, non_blocking=is_cuda)


def stacked_on(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return *tensors*, of one shape on the host, stacked on *device*, as `to_device` copies."""
    is_cuda = device.type == "cuda"
    shape = (len(tensors), *tensors[0].shape)
    staging = torch.empty(shape, dtype=tensors[0].dtype, pin_memory=is_cuda)
    torch.stack(list(tensors), out=staging)
    return staging.to(device, non_blocking=is_cuda)


class HostCopy:
    """A copy of a tensor to the host; it starts at once and does not block the host.

    Args:
        tensor: A tensor on any device. It must not change until `tolist` has returned.
    """

    def __init__(self, tensor: Tensor) -> None:
        is_cuda = tensor.device.type == "cuda"
        # The result is in pinned memory, because a non-blocking copy to the CPU allocates such
        # memory (torch 2.11, TensorConversions.cpp).
        self._host = tensor.to("cpu", non_blocking=is_cuda)
        self._copied: torch.cuda.Event | None = None
        if is_cuda:
            self._copied = torch.cuda.current_stream(tensor.device).record_event()

    def tolist(self) -> list[list[float]]:
        """Wait for the copy and return its numbers; the call does not wait for later GPU work."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[list[float]] = self._host.tolist()
        return numbers
