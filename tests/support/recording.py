"""CUDA graphs and a side stream on the CPU: kernels are recorded and replayed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from idefics_cli.engine.local.decode.graphs import Capture
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.local.vision.side_stream import SideStream
from idefics_cli.models.loading.loader import Loaded

# Operations that fail in a recording: the host waits for the GPU, or copies to it.
# Inference mode shows `item` and `is_nonzero` whole, other modes the kernel that they call.
_WAITS = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "unique",
)
_FORBIDDEN = (
    *_WAITS,
    "lift_fresh",
)


@dataclass
class CpuCapture:
    """Records every kernel that a function runs; a replay runs the kernels again and nothing else.

    As on a GPU, a replay runs no Python of the function, so values that it read stay as they were.

    Attributes:
        recordings: Number of kernels of each recording.
        replays: Number of replays.
    """

    recordings: list[int] = field(default_factory=list)
    replays: int = 0

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        with _Tape() as tape:
            output = function()
        self.recordings.append(len(tape.kernels))

        def replay() -> Tensor:
            self.replays += 1
            for kernel in tape.kernels:
                kernel()
            return output

        return replay


class LateSideStream:
    """A side stream on the CPU, whose results hold NaN until `join`.

    Args:
        error: Raised by all work after it has run.

    Attributes:
        made: Number of tensors that each work made.
        recorded: Number of tensors whose use was recorded.
        is_current: Whether the side stream runs what is called now.
    """

    def __init__(self, error: Exception | None = None) -> None:
        self.made: list[int] = []
        self.recorded = 0
        self.is_busy = self.is_current = False
        self._work_error = error
        self._late: list[tuple[Tensor, Tensor]] = []
        self._error: Exception | None = None

    def submit_work(self, work: Callable[[], object]) -> None:
        with self.in_place():
            made = [tensor for tensor in tree_leaves(work()) if isinstance(tensor, Tensor)]
        self.made.append(len(made))
        self._error = self._work_error
        for tensor in made:
            self._late.append((tensor, tensor.clone()))
            tensor.fill_(torch.nan)

    def join(self) -> None:
        for tensor, right in self._late:
            tensor.copy_(right)
        self._late = []
        if self._error is not None:
            raise self._error

    @contextmanager
    def in_place(self) -> Iterator[None]:
        self.is_current = True
        try:
            yield
        finally:
            self.is_current = False

    def record_use(self, tensors: Iterable[Tensor]) -> None:
        self.recorded += len(list(tensors))


def gpu_inference(
    loaded: Loaded,
    *,
    capture: Capture | None = None,
    side_stream: SideStream | None = None,
    stop_ids: Collection[int] = (),
    tuning: Tuning | None = None,
) -> Inference:
    """Return an inference that records its steps and encodes pictures ahead, as on a GPU."""
    return Inference(
        loaded,
        stop_ids=stop_ids,
        capture=capture or CpuCapture(),
        side_stream=side_stream or LateSideStream(),
        tuning=tuning,
    )


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no types
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class has no types
        self.kernels: list[Callable[[], None]] = []

    def __torch_dispatch__(  # type: ignore[no-untyped-def]  # torch's method has no types
        self, function, types, args=(), kwargs=None
    ):
        kwargs = kwargs or {}
        name = function._schema.name.partition("::")[2]
        # `where` with one argument is `nonzero`.
        if name.startswith(_FORBIDDEN) or (name == "where" and len(args) == 1):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        result = function(*args, **kwargs)
        if function._schema.is_mutable:
            self.kernels.append(lambda: function(*args, **kwargs))
            return result
        given = {_address(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        # A view launches no kernel.
        if any(_address(tensor) not in given for tensor in made):
            self.kernels.append(lambda: _write(made, function(*args, **kwargs)))
        return result


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _write(made: list[Tensor], again: object) -> None:
    new = [tensor for tensor in tree_leaves(again) if isinstance(tensor, Tensor)]
    for tensor, fresh in zip(made, new, strict=True):
        if tensor.numel():
            tensor.copy_(fresh)


def record(function: Callable[[], Tensor]) -> None:
    """Run *function* once; an operation that fails in a recording raises."""
    with torch.inference_mode(), _Tape():
        function()


@contextmanager
def waits_for_host() -> Iterator[list[str]]:
    """Give the names of the operations of the body for which the host of a GPU would wait."""
    waits: list[str] = []
    with _Waits(waits):
        yield waits


class _Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no types
    def __init__(self, waits: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class has no types
        self.waits = waits

    def __torch_dispatch__(  # type: ignore[no-untyped-def]  # torch's method has no types
        self, function, types, args=(), kwargs=None
    ):
        name = function._schema.name.partition("::")[2]
        if name.startswith(_WAITS) or (name == "where" and len(args) == 1):
            self.waits.append(name)
        return function(*args, **(kwargs or {}))
