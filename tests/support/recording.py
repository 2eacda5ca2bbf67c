"""What CUDA graphs do, on the CPU: kernels are recorded with their addresses and played back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from idefics_cli.engine.local.decode.graphs import Graphs
from idefics_cli.engine.local.inference import Inference
from idefics_cli.models.loading.loader import Loaded

# What a GPU cannot do while it is being recorded: the host would wait for it, or copy to it.
_FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "equal", "unique")


@dataclass
class CpuCapture:
    """Records every kernel that a function runs; a replay runs them again and nothing else.

    No Python of the function runs in a replay: what it would read anew is as it was, as on a GPU.

    Attributes:
        recordings: Number of kernels of each.
        replays: How many were played.
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


class LateBeside:
    """What a GPU does on a stream of its own, on the CPU: what it made is right after `join` only.

    Attributes:
        made: How many tensors each work made.
        borrowed: How many tensors were said to be used.
    """

    def __init__(self) -> None:
        self.made: list[int] = []
        self.borrowed = 0
        self.is_busy = False
        self._late: list[tuple[Tensor, Tensor]] = []
        self._error: Exception | None = None

    def begin(self, work: Callable[[], object]) -> None:
        try:
            made = [tensor for tensor in tree_leaves(work()) if isinstance(tensor, Tensor)]
        except Exception as error:
            self._error = error
            return
        self.made.append(len(made))
        for tensor in made:
            self._late.append((tensor, tensor.clone()))
            tensor.fill_(torch.nan)

    def join(self) -> None:
        for tensor, right in self._late:
            tensor.copy_(right)
        self._late = []
        if self._error is not None:
            raise self._error

    def borrow(self, tensors: Iterable[Tensor]) -> None:
        self.borrowed += len(list(tensors))


def like_on_a_gpu(loaded: Loaded, capture: object) -> Inference:
    """Return an inference that records its steps by *capture*, and encodes pictures beside."""
    inference = Inference(loaded)
    inference._records = True
    inference._graphs = Graphs(capture)  # type: ignore[arg-type]
    inference._beside = LateBeside()
    return inference


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Callable[[], None]] = []

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, function, types, args=(), kwargs=None
    ):
        kwargs = kwargs or {}
        name = function._schema.name.partition("::")[2]
        # With one argument it is `nonzero`.
        if name.startswith(_FORBIDDEN) or (name == "where" and len(args) == 1):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        result = function(*args, **kwargs)
        if function._schema.is_mutable:
            self.kernels.append(lambda: function(*args, **kwargs))
            return result
        given = {_address(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        # Views are no kernels.
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
    """Run *function* once, so that it raises what a GPU would not record."""
    with torch.inference_mode(), _Tape():
        function()
