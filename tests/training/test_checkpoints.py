"""Checkpoints are whole or not there, and the newest one that can be read counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from idefics_cli.core.errors import IdeficsError
from idefics_cli.training.checkpoints import Checkpoint, Checkpoints


def checkpoint(step: int) -> Checkpoint:
    weights = {"a.weight": torch.full((2, 3), float(step)), "b": torch.arange(step + 1.0)}
    return Checkpoint(step, weights, {"a.weight.step": torch.tensor(float(step))}, {"x": [step]})


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path / "state")
    assert folder.latest() is None
    folder.save(checkpoint(3))
    found = folder.latest()
    assert found is not None
    assert (found.step, found.notes["x"]) == (3, [3])
    assert all(torch.equal(found.weights[k], v) for k, v in checkpoint(3).weights.items())
    assert found.optimizer["a.weight.step"] == 3


def test_the_two_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path)
    for step in (2, 9, 10, 11):
        folder.save(checkpoint(step))
        if step in (2, 9):
            folder.save_best(checkpoint(step))
    assert sorted(os.listdir(tmp_path)) == ["best-9", "step-10", "step-11"]
    best = folder.best(9)
    assert best is not None and best.weights["b"].shape == (10,)  # noqa: PT018 (for mypy)
    assert folder.best(2) is None
    folder.remove()
    assert not tmp_path.exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "notes.json"])
@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_the_one_before_counts_if_a_file_is_damaged(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    folder = Checkpoints(tmp_path)
    for step in (4, 5):
        folder.save(checkpoint(step))
    path = tmp_path / "step-5" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    found = folder.latest()
    assert found is not None
    assert found.step == 4


def test_what_a_killed_run_left_does_not_count(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path)
    folder.save(checkpoint(4))
    (tmp_path / ".partial-step-5").mkdir()
    (tmp_path / ".partial-step-5" / "weights.safetensors").write_bytes(b"half")
    found = folder.latest()
    assert found is not None
    assert found.step == 4
    folder.save(checkpoint(5))
    assert sorted(os.listdir(tmp_path)) == ["step-4", "step-5"]


def test_a_full_disk_is_an_error_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Checkpoints(tmp_path)
    folder.save(checkpoint(4))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IdeficsError, match=r"cannot write a checkpoint to .*: No space left"):
        folder.save(checkpoint(5))
    assert os.listdir(tmp_path) == ["step-4"]
