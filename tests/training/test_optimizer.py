"""Our Muon against that of torch, and several processes against one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from idefics_cli.training.optimizer import Buffers, Layout, Muon, ShardedOptimizer, orthogonalized


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    values = torch.linalg.svdvals(orthogonalized(matrices))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    alignment = (orthogonalized(matrices) * (left @ right)).sum((1, 2)) / min(shape)

    assert 0.5 < values.min() < values.max() < 1.3
    assert (alignment > 0.7).all()


def test_our_muon_takes_the_steps_of_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(8, 5), torch.empty(8, 5)
    theirs.copy_(ours)
    start = ours.clone()
    muon = Muon([ours], weight_decay=0.05)
    theirs.requires_grad_()
    reference = torch.optim.Muon(
        [theirs], lr=0.1, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(4):
        gradient = torch.randn(8, 5)
        theirs.grad = gradient.clone()
        reference.step()  # type: ignore[no-untyped-call]  # torch declares no types for it
        muon.step([gradient], learning_rate=0.1)

    # The iteration of torch is in bfloat16.
    moved = (theirs.detach() - start).norm()
    assert (ours - theirs.detach()).norm() < 0.02 * moved


SHAPES = {
    "text.layer.weight": (6, 4),
    "text.embedding": (9, 4),
    "vision.layer.weight": (4, 6),
    "vision.other.weight": (4, 6),
    "vision.norm.bias": (4,),
    "head.weight": (5, 4),
}
MATRICES = {name for name in SHAPES if name.endswith(("layer.weight", "other.weight"))}
PAUSABLE = {name for name in SHAPES if name.startswith("text.")}


def small_parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(3)
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}


def optimizers(processes: int) -> tuple[list[ShardedOptimizer], list[dict[str, nn.Parameter]]]:
    """Return the optimizers of *processes* threads that share one memory."""
    made: list[ShardedOptimizer | None] = [None] * processes
    parameters = [small_parameters() for _ in range(processes)]
    count = sum(p.numel() for p in parameters[0].values())
    buffers = Buffers.allocate(count, processes=1, dtype=torch.float32, device="cpu")
    buffers = replace(
        buffers,
        gradients=torch.zeros(processes, count),
        squares=torch.zeros(processes, dtype=torch.float64),
    )
    barrier = threading.Barrier(processes)

    def make(rank: int) -> None:
        made[rank] = ShardedOptimizer(
            parameters[rank],
            buffers,
            matrices=MATRICES,
            pausable=PAUSABLE,
            rank=rank,
            barrier=barrier,
        )

    in_threads(processes, make)
    return [each for each in made if each is not None], parameters


def in_threads(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)


def after_steps(
    processes: int, *, pauses: bool = False, scales: Sequence[float] = (0.1, 0.1, 0.1)
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return weights and gradient norms of steps whose mean gradients are the same each time."""
    made, parameters = optimizers(processes)
    norms: list[float] = []

    def work(rank: int) -> None:
        for step, scale in enumerate(scales):
            made[rank].clear()
            for index, parameter in enumerate(parameters[rank].values()):
                generator = torch.Generator().manual_seed(100 * step + index)
                gradient = scale * torch.randn(parameter.shape, generator=generator)
                assert parameter.grad is not None
                # The shares of the processes differ, but their mean does not.
                parameter.grad += gradient * (1 + rank - (processes - 1) / 2)
            norm = made[rank].step(0.1, pauses=pauses)
            if rank == 0:
                norms.append(norm)

    in_threads(processes, work)
    return {name: each.detach().clone() for name, each in parameters[0].items()}, norms


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_update_as_one_alone(processes: int) -> None:
    (alone, norms), (together, same_norms) = after_steps(1), after_steps(processes)
    before = small_parameters()

    assert same_norms == pytest.approx(norms)
    assert len(norms) == 3
    for name, expected in alone.items():
        assert torch.allclose(together[name], expected, atol=1e-5), name
        assert not torch.allclose(expected, before[name], atol=1e-3), name


def test_a_step_that_pauses_leaves_the_pausable_parameters_alone() -> None:
    (after, _), before = after_steps(2, pauses=True), small_parameters()

    for name, expected in before.items():
        is_same = torch.equal(after[name], expected)
        assert is_same == (name in PAUSABLE), name


def test_a_gradient_above_norm_one_counts_as_one_of_norm_one() -> None:
    """Without clipping, the momentum of the first step would outweigh the second step."""
    (_, (norm, _)) = after_steps(1, scales=(1.0, 0.05))
    clipped, norms = after_steps(2, scales=(1000.0, 0.05))
    scaled, unit_norms = after_steps(2, scales=(0.999 / norm, 0.05))

    assert norms[0] == pytest.approx(1000 * norm)
    assert unit_norms[0] == pytest.approx(0.999)
    for name, expected in scaled.items():
        assert torch.allclose(clipped[name], expected, atol=2e-3), name


def test_the_layout_covers_the_memory_once_and_divides_the_work() -> None:
    shapes = {name: torch.Size(shape) for name, shape in SHAPES.items()}
    layout = Layout.divide(shapes, 2, matrices=MATRICES)
    places = sorted((layout.offsets[name], shape.numel()) for name, shape in shapes.items())
    ends = [start + size for start, size in places]

    assert [start for start, _ in places] == [0, *ends[:-1]]
    assert layout.spans == ((0, layout.spans[0][1]), (layout.spans[0][1], ends[-1]))
    assert sorted(name for names in layout.owners for name in names) == sorted(shapes)
    assert all(0.4 < (stop - start) / ends[-1] < 0.6 for start, stop in layout.spans)
