"""Work that a device does beside what it is at, as a GPU encodes pictures while it decodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Beside(Protocol):
    """Takes work that nobody waits for yet; for the thread that uses the device otherwise too."""

    @property
    def is_busy(self) -> bool:
        """Whether the device is still at what was begun."""
        ...

    def begin(self, work: Callable[[], object]) -> None:
        """Tell the device of *work*; what it makes may be used after `join` only."""
        ...

    def join(self) -> None:
        """Let what the device is told of from now on come after all that was begun."""
        ...


class CudaBeside:
    """A stream of its own; not measured on a GPU yet.

    Args:
        device: Where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._done: torch.cuda.Event | None = None

    @property
    def is_busy(self) -> bool:
        """See `Beside`."""
        return self._done is not None and not self._done.query()  # type: ignore[no-untyped-call]

    def begin(self, work: Callable[[], object]) -> None:
        """See `Beside`."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # What the other stream has been told of may be needed, as the weights. It may also use
        # what was made here and is gone by now, and whose memory is given out again here.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(self._stream):
                work()
        finally:
            # Also of work that broke off: some of what it made may be kept.
            self._done = self._stream.record_event()

    def join(self) -> None:
        """See `Beside`."""
        if self._done is not None:
            torch.cuda.current_stream(self._device).wait_event(self._done)


def beside(device: torch.device) -> Beside | None:
    """Return what does other work on *device* at the same time; None if nothing can."""
    return CudaBeside(device) if device.type == "cuda" else None
