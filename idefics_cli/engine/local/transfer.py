"""Small numbers on their way to a GPU and back, without anybody waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Sequence[int], device: torch.device) -> Tensor:
    """Return *values* (N,) on *device*; a GPU copies them when it has come that far."""
    is_cuda = device.type == "cuda"
    # The memory that a copy still reads is not given out again (CUDA's host allocator).
    staging = torch.tensor(values, dtype=torch.long, pin_memory=is_cuda)
    return staging.to(device, non_blocking=is_cuda)


class Arrival:
    """A tensor that is sent to the host as soon as the device has computed it.

    Args:
        tensor: Anywhere; not to be changed afterwards.
    """

    def __init__(self, tensor: Tensor) -> None:
        is_cuda = tensor.device.type == "cuda"
        # Into pinned memory, if it need not wait (torch 2.11, TensorConversions.cpp).
        self._here = tensor.to("cpu", non_blocking=is_cuda)
        self._sent: torch.cuda.Event | None = None
        if is_cuda:
            self._sent = torch.cuda.current_stream(tensor.device).record_event()

    def tolist(self) -> list[list[float]]:
        """Return its numbers, when they are here; what the device was told since goes on."""
        if self._sent is not None:
            self._sent.synchronize()
        numbers: list[list[float]] = self._here.tolist()
        return numbers
