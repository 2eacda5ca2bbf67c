"""The optimizers Muon and AdamW, divided over processes that share weights in memory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

_MAX_NORM = 1.0


class Barrier(Protocol):
    """A point at which processes wait for each other."""

    def wait(self) -> int:
        """Block until every process waits here."""
        ...

    def abort(self) -> None:
        """Raise `BrokenBarrierError` in every process that waits here, now or later."""
        ...


@dataclass(frozen=True, slots=True)
class Buffers:
    """Memory that W processes share; on a GPU, W is 1.

    Attributes:
        weights: (P,) all parameters, in the dtype of the computation.
        gradients: (W, P) the gradients, one row for each process, in the same dtype.
        squares: (W,) float64, the part of the squared gradient norm that each process computes.
    """

    weights: Tensor
    gradients: Tensor
    squares: Tensor

    @classmethod
    def allocate(
        cls, parameters: int, *, processes: int, dtype: torch.dtype, device: str
    ) -> Buffers:
        """Return zeros, in shared memory if there are several processes."""
        buffers = cls(
            torch.zeros(parameters, dtype=dtype, device=device),
            torch.zeros(processes, parameters, dtype=dtype, device=device),
            torch.zeros(processes, dtype=torch.float64),
        )
        if processes > 1:
            for tensor in (buffers.weights, buffers.gradients, buffers.squares):
                tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch 2.13 has no annotation
        return buffers


@dataclass(frozen=True, slots=True)
class Layout:
    """Place of each parameter in the flat memory, and the process that updates it.

    Attributes:
        offsets: Name of a parameter -> index of its first number.
        owners: Names of the parameters that each process updates. They lie side by side.
        spans: First and last index (exclusive) of the parameters of each process.
    """

    offsets: Mapping[str, int]
    owners: tuple[tuple[str, ...], ...]
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def divide(
        cls, shapes: Mapping[str, torch.Size], processes: int, *, matrices: Collection[str] = ()
    ) -> Layout:
        """Divide the work of the update evenly over *processes*.

        Parameters are assigned in the order of their cost, the costliest first, each to the process
        that has the least work so far.

        Args:
            shapes: Shape of each parameter, by name.
            processes: Number of processes.
            matrices: Names of the parameters that `Muon` updates, at a higher cost.
        """
        costs = {name: _cost(shape, name in matrices) for name, shape in shapes.items()}
        owners: list[list[str]] = [[] for _ in range(processes)]
        load = [0.0] * processes
        for name in sorted(shapes, key=lambda name: -costs[name]):
            least = load.index(min(load))
            owners[least].append(name)
            load[least] += costs[name]
        offsets: dict[str, int] = {}
        spans = []
        end = 0
        for names in owners:
            start = end
            for name in names:
                offsets[name] = end
                end += shapes[name].numel()
            spans.append((start, end))
        return cls(offsets, tuple(map(tuple, owners)), tuple(spans))


class Muon:
    """The optimizer Muon for matrices: momentum with an orthogonalized update (Jordan et al. 2024).

    The step equals that of `torch.optim.Muon` with `match_rms_adamw` (torch 2.13). This class
    updates matrices of one shape together. On a processor without bfloat16 it computes in float32;
    torch's Muon takes three times as long there.

    Args:
        matrices: Matrices of one shape; `step` updates them in place.
        weight_decay: Decoupled weight decay.
        momentum: Share of the old momentum in the new one.
        dtype: Dtype of the orthogonalization.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        *,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._matrices = list(matrices)
        self._momentum = torch.zeros_like(torch.stack(self._matrices))
        self._weight_decay = weight_decay
        self._beta = momentum
        self._dtype = dtype

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], *, learning_rate: float) -> None:
        """Update the matrices. *gradients* has the gradient of each matrix, in the same order."""
        stacked = torch.stack(list(gradients))
        self._momentum.lerp_(stacked, 1 - self._beta)
        update = orthogonalized(stacked.lerp(self._momentum, self._beta).to(self._dtype))
        # The factor gives the update the size of an update by AdamW (Liu et al. 2025,
        # arXiv 2502.16982, eq. 4).
        scale = learning_rate * 0.2 * math.sqrt(max(stacked.shape[1:]))
        for matrix, change in zip(self._matrices, update, strict=True):
            matrix.mul_(1 - learning_rate * self._weight_decay)
            matrix.add_(change, alpha=-scale)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices close to U V^T, where U S V^T decomposes each of *matrices* (K, M, N).

    This is the quintic Newton-Schulz iteration with the coefficients of the post about Muon
    (Jordan et al. 2024). The singular values end between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class ShardedOptimizer:
    """Updates one process's share of the parameters from the gradients of all processes.

    The optimizer moves the given parameters into *buffers*, in the dtype of the buffers, and keeps
    float32 copies of its share. Every process makes one optimizer, with equal parameters.

    Args:
        parameters: All float32 parameters, by name.
        buffers: Memory shared by all processes.
        matrices: Names of the matrices that `Muon` updates; AdamW updates the other parameters.
        pausable: Names of the parameters that `step` can leave unchanged.
        rank: Number of this process, from 0.
        barrier: Barrier of all processes.
        weight_decay: Weight decay of the matrices.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        buffers: Buffers,
        *,
        matrices: Collection[str],
        pausable: Collection[str] = (),
        rank: int,
        barrier: Barrier,
        weight_decay: float = 0.05,
    ) -> None:
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._layout = Layout.divide(shapes, len(buffers.gradients), matrices=matrices)
        self._shapes = shapes
        self._buffers = buffers
        self._pausable = frozenset(pausable)
        self._rank = rank
        self._barrier = barrier
        own = self._layout.owners[rank]
        device = buffers.weights.device
        self._masters = {
            name: parameters[name].detach().to(device, torch.float32, copy=True) for name in own
        }
        for name, parameter in parameters.items():
            place = self._view(buffers.weights, name)
            if rank == 0:
                place.copy_(parameter.data)
            parameter.data = place
            parameter.grad = self._view(buffers.gradients[rank], name)
        self._muons = self._make_muons([name for name in own if name in matrices], weight_decay)
        self._adams = self._make_adams([name for name in own if name not in matrices])
        barrier.wait()

    def clear(self) -> None:
        """Set this process's gradients to zero."""
        self._buffers.gradients[self._rank].zero_()

    @torch.no_grad()
    def step(self, learning_rate: float, *, pauses: bool = False) -> float:
        """Average the gradients, clip them to norm 1, and update the weights.

        Every process must call this after its backward pass. When it returns, all processes see
        the new weights.

        Args:
            learning_rate: Learning rate of all parameters.
            pauses: Whether to leave the pausable parameters unchanged.

        Returns:
            The norm of the gradients before they were clipped.
        """
        self._barrier.wait()
        start, stop = self._layout.spans[self._rank]
        mean = self._buffers.gradients[:, start:stop].float().mean(0)
        self._buffers.squares[self._rank] = float(mean.square().sum())
        self._barrier.wait()
        norm = math.sqrt(float(self._buffers.squares.sum()))
        mean.mul_(min(1.0, _MAX_NORM / (norm + 1e-6)))
        gradients = {
            name: mean[offset - start : offset - start + master.numel()].view(master.shape)
            for name, master in self._masters.items()
            for offset in (self._layout.offsets[name],)
        }
        self._update(gradients, learning_rate, pauses=pauses)
        for name, master in self._masters.items():
            self._view(self._buffers.weights, name).copy_(master)
        self._barrier.wait()
        return norm

    def _update(
        self, gradients: Mapping[str, Tensor], learning_rate: float, *, pauses: bool
    ) -> None:
        for names, muon in self._muons:
            if not (pauses and names[0] in self._pausable):
                muon.step([gradients[name] for name in names], learning_rate=learning_rate)
        for names, adam in self._adams:
            if pauses and names[0] in self._pausable:
                continue
            for name in names:
                self._masters[name].grad = gradients[name]
            for group in adam.param_groups:
                group["lr"] = learning_rate
            adam.step()

    def _make_muons(
        self, names: Sequence[str], weight_decay: float
    ) -> list[tuple[tuple[str, ...], Muon]]:
        """Return an optimizer for each shape; pausable matrices have separate optimizers."""
        groups: dict[tuple[bool, torch.Size], list[str]] = defaultdict(list)
        for name in names:
            groups[name in self._pausable, self._shapes[name]].append(name)
        dtype = self._buffers.weights.dtype
        return [
            (tuple(group), Muon(self._copies(group), weight_decay=weight_decay, dtype=dtype))
            for group in groups.values()
        ]

    def _make_adams(
        self, names: Sequence[str]
    ) -> list[tuple[tuple[str, ...], torch.optim.Optimizer]]:
        """Return an optimizer for the pausable parameters and one for the others."""
        groups: dict[bool, list[str]] = defaultdict(list)
        for name in names:
            groups[name in self._pausable].append(name)
        return [
            (
                tuple(group),
                torch.optim.AdamW(self._copies(group), betas=(0.9, 0.98), weight_decay=0.0),
            )
            for group in groups.values()
        ]

    def _copies(self, names: Sequence[str]) -> list[Tensor]:
        return [self._masters[name] for name in names]

    def _view(self, flat: Tensor, name: str) -> Tensor:
        offset, shape = self._layout.offsets[name], self._shapes[name]
        return flat[offset : offset + shape.numel()].view(shape)


def _cost(shape: torch.Size, is_matrix: bool) -> float:
    """Return the relative time of one update. For a matrix, Newton-Schulz takes most of it."""
    size = float(shape.numel())
    return size + min(shape) ** 2 * max(shape) / 40 if is_matrix else size
