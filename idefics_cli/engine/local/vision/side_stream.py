"""Work that a device does beside what it is at, as a GPU encodes pictures while it decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

import torch
from torch import Tensor


class Beside(Protocol):
    """Takes work that nobody waits for yet; for the thread that uses the device otherwise too."""

    @property
    def is_busy(self) -> bool:
        """Whether the device is still at what was begun."""
        ...

    def begin(self, work: Callable[[], object]) -> None:
        """Begin *work*; what it makes may be used after `join` only."""
        ...

    def join(self) -> None:
        """Let what the device is told of from now on come after what was begun.

        Raises:
            Exception: What the work raised.
        """
        ...

    def borrow(self, tensors: Iterable[Tensor]) -> None:
        """Say that *tensors* are used now: their memory is not given out before that is over."""
        ...


class CudaBeside:
    """A stream of its own, and a thread; not tried on a GPU yet.

    The library looks at numbers while it encodes, and then waits for the device. In a thread of
    its own that holds nobody up.

    Args:
        device: Where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="beside")
        self._stream: torch.cuda.Stream | None = None
        self._job: Future[torch.cuda.Event] | None = None

    @property
    def is_busy(self) -> bool:
        """See `Beside`."""
        if self._job is None:
            return False
        if not self._job.done():
            return True
        has_failed = self._job.exception() is not None
        return not (has_failed or self._job.result().query())  # type: ignore[no-untyped-call]

    def begin(self, work: Callable[[], object]) -> None:
        """See `Beside`."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # What the other stream has been told of may be needed, as the weights.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._job = self._worker.submit(self._do, work, self._stream)

    def join(self) -> None:
        """See `Beside`."""
        if self._job is None:
            return
        wait([self._job])
        if self._job.exception() is not None:
            # Some of what the work made before it failed may be kept.
            torch.cuda.synchronize(self._device)
        torch.cuda.current_stream(self._device).wait_event(self._job.result())

    def borrow(self, tensors: Iterable[Tensor]) -> None:
        """See `Beside`."""
        stream = torch.cuda.current_stream(self._device)
        for tensor in tensors:
            tensor.record_stream(stream)

    def _do(self, work: Callable[[], object], stream: torch.cuda.Stream) -> torch.cuda.Event:
        with torch.cuda.stream(stream):
            work()
            done: torch.cuda.Event = stream.record_event()
            return done


def beside_of(device: torch.device) -> Beside | None:
    """Return what does other work on *device* at the same time; None if nothing can."""
    return CudaBeside(device) if device.type == "cuda" else None
