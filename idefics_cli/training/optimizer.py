"""Muon and AdamW, divided over processes that share their weights in memory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

_LANGUAGE = ("model.text_model.", "lm_head.")
_NOT_MATRICES = ("embed", "latents", "lm_head")
_HEADS = "heads."
_MAX_NORM = 1.0


class Barrier(Protocol):
    """Where processes wait for each other."""

    def wait(self) -> int:
        """Block until every process is here."""
        ...

    def abort(self) -> None:
        """Let every process that waits, or will, fail with `BrokenBarrierError`."""
        ...


@dataclass(frozen=True, slots=True)
class Buffers:
    """Memory that W processes share; on a GPU, of the one process there is.

    Attributes:
        weights: (P,) all parameters, in the dtype of the computation.
        gradients: (W, P) one row per process, in the same dtype.
        squares: (W,) float64: each process's share of the squared gradient norm.
    """

    weights: Tensor
    gradients: Tensor
    squares: Tensor

    @classmethod
    def allocate(
        cls, parameters: int, *, processes: int, dtype: torch.dtype, device: str
    ) -> Buffers:
        """Return zeros, in shared memory if there is more than one process."""
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
    """Where each parameter lies in the flat memory, and who updates it.

    Attributes:
        offsets: Name -> index of its first number.
        owners: For each process, the names it updates: one contiguous stretch.
        spans: For each process, start and stop of its stretch.
    """

    offsets: Mapping[str, int]
    owners: tuple[tuple[str, ...], ...]
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def divide(cls, shapes: Mapping[str, torch.Size], processes: int) -> Layout:
        """Balance the work of the update: the costliest parameter first, to who has least."""
        owners: list[list[str]] = [[] for _ in range(processes)]
        load = [0.0] * processes
        for name in sorted(shapes, key=lambda name: -_cost(name, shapes[name])):
            least = load.index(min(load))
            owners[least].append(name)
            load[least] += _cost(name, shapes[name])
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
    """Momentum whose update is orthogonalized (Jordan et al. 2024), for matrices.

    The step is `torch.optim.Muon` with `match_rms_adamw` (torch 2.13), but matrices of one
    shape go together, and in float32 where the processor has no bfloat16: there torch's takes
    three times as long.

    Args:
        matrices: Of one shape; they are updated in place.
        weight_decay: Decoupled.
        momentum: Share of the old momentum.
        dtype: Of the orthogonalization.
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
        """Update the matrices by *gradients*, in the same order."""
        stacked = torch.stack(list(gradients))
        self._momentum.lerp_(stacked, 1 - self._beta)
        update = orthogonalized(stacked.lerp(self._momentum, self._beta).to(self._dtype))
        # The update's size is then that of AdamW (Liu et al. 2025, arXiv 2502.16982, eq. 4).
        scale = learning_rate * 0.2 * math.sqrt(max(stacked.shape[1:]))
        for matrix, change in zip(self._matrices, update, strict=True):
            matrix.mul_(1 - learning_rate * self._weight_decay)
            matrix.add_(change, alpha=-scale)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices near U V^T of the singular value decompositions of *matrices* (K, M, N).

    The quintic Newton-Schulz iteration of the Muon post, with its coefficients: the singular
    values end between about 0.7 and 1.2.
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
    """Updates the parameters of one process's shard, from the gradients of all.

    The parameters given are moved into *buffers*, in their dtype; float32 copies of the own
    shard are kept here. Every process makes one of these, with equal parameters.

    Args:
        parameters: Name -> float32 parameter; the language model's begin with
            `model.text_model.`, the auxiliary heads' with `heads.`.
        buffers: Shared by all.
        rank: Which process this is.
        barrier: Of all processes.
        weight_decay: Of the matrices.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        buffers: Buffers,
        *,
        rank: int,
        barrier: Barrier,
        weight_decay: float = 0.05,
    ) -> None:
        processes = len(buffers.gradients)
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._layout = Layout.divide(shapes, processes)
        self._shapes = shapes
        self._buffers = buffers
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
        self._muons = self._make_muons(weight_decay)
        self._adams = {
            is_language: torch.optim.AdamW(group, betas=(0.9, 0.98), weight_decay=0.0)
            for is_language in (False, True)
            if (group := [self._masters[name] for name in self._others(is_language)])
        }
        barrier.wait()

    def clear(self) -> None:
        """Set this process's gradients to zero."""
        self._buffers.gradients[self._rank].zero_()

    @torch.no_grad()
    def step(self, learning_rate: float, *, with_language: bool = True) -> float:
        """Average the gradients, clip them to norm 1, update; return the norm before.

        Every process must call it after its backward pass; then the weights are new for all.
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
        self._update(gradients, learning_rate, with_language=with_language)
        for name, master in self._masters.items():
            self._view(self._buffers.weights, name).copy_(master)
        self._barrier.wait()
        return norm

    def _update(
        self, gradients: Mapping[str, Tensor], learning_rate: float, *, with_language: bool
    ) -> None:
        for names, muon in self._muons:
            if with_language or not _is_language(names[0]):
                muon.step([gradients[name] for name in names], learning_rate=learning_rate)
        for is_language, adam in self._adams.items():
            if is_language and not with_language:
                continue
            for name in self._others(is_language):
                self._masters[name].grad = gradients[name]
            for group in adam.param_groups:
                group["lr"] = learning_rate
            adam.step()

    def _make_muons(self, weight_decay: float) -> list[tuple[tuple[str, ...], Muon]]:
        groups: dict[tuple[bool, torch.Size], list[str]] = defaultdict(list)
        for name, master in self._masters.items():
            if _is_matrix(name, master.shape):
                groups[_is_language(name), master.shape].append(name)
        dtype = self._buffers.weights.dtype
        return [
            (
                tuple(names),
                Muon(
                    [self._masters[name] for name in names], weight_decay=weight_decay, dtype=dtype
                ),
            )
            for names in groups.values()
        ]

    def _others(self, is_language: bool) -> list[str]:
        return [
            name
            for name, master in self._masters.items()
            if not _is_matrix(name, master.shape) and _is_language(name) == is_language
        ]

    def _view(self, flat: Tensor, name: str) -> Tensor:
        offset, shape = self._layout.offsets[name], self._shapes[name]
        return flat[offset : offset + shape.numel()].view(shape)


def _is_language(name: str) -> bool:
    return name.startswith(_LANGUAGE)


def _is_matrix(name: str, shape: torch.Size) -> bool:
    """Whether Muon updates it: maps between activations, but no embeddings and no heads."""
    if len(shape) != 2 or name.startswith(_HEADS):
        return False
    return not any(part in name for part in _NOT_MATRICES)


def _cost(name: str, shape: torch.Size) -> float:
    """Return the relative time of one update; Newton-Schulz is cubic in the smaller side."""
    size = float(shape.numel())
    if _is_matrix(name, shape):
        size += min(shape) ** 2 * max(shape) / 40
    return size
