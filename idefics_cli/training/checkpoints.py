"""The state of a training run on disk, from which a later run goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.files import sync_folder

_KEPT = 2
_NAME = re.compile(r"(step|best)-(\d{1,12})")
_WEIGHTS, _OPTIMIZER, _NOTES = "weights.safetensors", "optimizer.safetensors", "notes.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run after some of its steps.

    Attributes:
        step: Number of steps that are done.
        weights: The trained weights by name.
        optimizer: State of the optimizer; see `TrainingSteps.state`.
        notes: What else the run needs, as JSON can hold it.
    """

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    notes: Mapping[str, Any]  # Any: JSON


class Checkpoints:
    """The two newest checkpoints of a run and its best weights, each a folder.

    A folder is written under another name and then renamed, so one that has its name is complete.

    Args:
        folder: The folder of the folders; it is made when something is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write *checkpoint*, and remove all but the two newest.

        Raises:
            IdeficsError: If it cannot be written; the earlier ones stay.
        """
        self._write(f"step-{checkpoint.step}", checkpoint)
        for step in sorted(self._steps("step"), reverse=True)[_KEPT:]:
            shutil.rmtree(self._folder / f"step-{step}", ignore_errors=True)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write *checkpoint* as the best one, in place of the former best one.

        Raises:
            IdeficsError: If it cannot be written; the former one stays.
        """
        former = self._steps("best")
        self._write(f"best-{checkpoint.step}", checkpoint)
        for step in former:
            if step != checkpoint.step:
                shutil.rmtree(self._folder / f"best-{step}", ignore_errors=True)

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that can be read; None if there is none."""
        found = (self._read("step", step) for step in sorted(self._steps("step"), reverse=True))
        return next((each for each in found if each is not None), None)

    def best(self, step: int) -> Checkpoint | None:
        """Return the best checkpoint if it is that of *step*, else None."""
        return self._read("best", step)

    def remove(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _steps(self, kind: str) -> list[int]:
        if not self._folder.is_dir():
            return []
        names = (_NAME.fullmatch(name) for name in os.listdir(self._folder))
        return [int(name[2]) for name in names if name is not None and name[1] == kind]

    def _write(self, name: str, checkpoint: Checkpoint) -> None:
        partial = self._folder / f".partial-{name}"
        with _disk_errors(self._folder, partial):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            notes = {**checkpoint.notes, "step": checkpoint.step}
            for file, data in (
                (_WEIGHTS, save(dict(checkpoint.weights))),
                (_OPTIMIZER, save(dict(checkpoint.optimizer))),
                (_NOTES, json.dumps(notes).encode()),
            ):
                _write_file(partial / file, data)
            sync_folder(partial)
            target = self._folder / name
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            sync_folder(self._folder)

    def _read(self, kind: str, step: int) -> Checkpoint | None:
        folder = self._folder / f"{kind}-{step}"
        try:
            notes = json.loads((folder / _NOTES).read_bytes())
            weights, optimizer = (load_file(folder / name) for name in (_WEIGHTS, _OPTIMIZER))
        except (OSError, ValueError, SafetensorError):
            return None
        if not isinstance(notes, dict) or notes.get("step") != step:
            return None
        return Checkpoint(step, weights, optimizer, notes)


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _disk_errors(folder: Path, partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise IdeficsError(
            f"cannot write a checkpoint to `{folder}`: {error.strerror or error}",
            hint="free some space; the same command then continues from the previous checkpoint",
        ) from error
