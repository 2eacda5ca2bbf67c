"""A side stream: a GPU encodes pictures on it while it decodes on the main stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor


class SideStream(Protocol):
    """Runs work beside the main stream, before it is needed. Only the inference thread calls it."""

    @property
    def is_busy(self) -> bool:
        """Whether the device still runs the submitted work."""
        ...

    def submit_work(self, work: Callable[[], object]) -> None:
        """Start *work*; its results may be used only after `join`."""
        ...

    def join(self) -> None:
        """Make all later work of the main stream wait for the submitted work.

        Raises:
            Exception: The error of the work.
        """
        ...

    def in_place(self) -> AbstractContextManager[None]:
        """Run the body on the device's side stream, between earlier and later work of the main one.

        The results may be used at once, after `record_use`.
        """
        ...

    def record_use(self, tensors: Iterable[Tensor]) -> None:
        """Keep the memory of *tensors* until the main stream has run what is queued now."""
        ...


class CudaSideStream:
    """A CUDA stream with its own thread. This code has not been run on a GPU yet.

    While transformers encodes pictures, it reads some results on the host, and waits for the device
    to compute them. In its own thread, this wait does not delay decoding.

    Args:
        device: The device of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="side-stream")
        self._stream: torch.cuda.Stream | None = None
        self._job: Future[torch.cuda.Event] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the device still runs the submitted work."""
        if self._job is None:
            return False
        if not self._job.done():
            return True
        has_failed = self._job.exception() is not None
        return not (has_failed or self._job.result().query())  # type: ignore[no-untyped-call]  # of torch

    def submit_work(self, work: Callable[[], object]) -> None:
        """Start *work* in the thread; see `SideStream`."""
        stream, _ = self._waiting_stream()
        self._job = self._worker.submit(self._run, work, stream)

    def join(self) -> None:
        """Let the main stream wait for the work; see `SideStream`."""
        if self._job is None:
            return
        wait([self._job])
        if self._job.exception() is not None:
            # The cache may hold features from before the error, and no event marks when the device
            # has computed them. So all work of the device must end.
            torch.cuda.synchronize(self._device)
        torch.cuda.current_stream(self._device).wait_event(self._job.result())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Run the body on the stream; see `SideStream`."""
        stream, current = self._waiting_stream()
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            current.wait_stream(stream)

    def record_use(self, tensors: Iterable[Tensor]) -> None:
        """Tell torch that the main stream uses *tensors*; see `SideStream`."""
        stream = torch.cuda.current_stream(self._device)
        for tensor in tensors:
            tensor.record_stream(stream)

    def _waiting_stream(self) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
        """Return the stream, which waits for the main one, and the main one."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # of torch
        current = torch.cuda.current_stream(self._device)
        # The side stream waits for the main stream, because work in it may read results of the main
        # stream, such as the weights.
        self._stream.wait_stream(current)
        return self._stream, current

    def _run(self, work: Callable[[], object], stream: torch.cuda.Stream) -> torch.cuda.Event:
        with torch.cuda.stream(stream):
            work()
            done: torch.cuda.Event = stream.record_event()
            return done


def side_stream_of(device: torch.device) -> SideStream | None:
    """Return a side stream of *device*; None if the device has no streams."""
    return CudaSideStream(device) if device.type == "cuda" else None
