"""The events of a captioning run, for those who show it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from idefics_cli.caption.outcome import RunOutcome
from idefics_cli.caption.resume.todo import Todo
from idefics_cli.core.types import CaptionRecord


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins with *total* pictures to caption; *skipped* others have their captions."""

    total: int
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class ModelLoading:
    """The model is being loaded.

    Attributes:
        phase: As in `core.types.Progress`.
        share: Share of the phase that is done, in 0..1; None if unknown.
    """

    phase: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded, and captions follow.

    Attributes:
        revision: Commit of the weights, if it is known.
    """

    revision: str | None = None


@dataclass(frozen=True, slots=True)
class BatchReduced:
    """The memory ran out; from now on the model answers *size* pictures at a time."""

    size: int


@dataclass(frozen=True, slots=True)
class Stopping:
    """The run was asked to stop: it finishes the current batch, and begins nothing else."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run continues an earlier one.

    Attributes:
        todo: What is left to do, and what was done before.
        total: Number of pictures of the run.
    """

    todo: Todo
    total: int


@dataclass(frozen=True, slots=True)
class Unlocked:
    """The file system of the journal at *path* has no locks, so that another run could write."""

    path: Path


@dataclass(frozen=True, slots=True)
class BatchLimited:
    """The run begins with *size* pictures at a time: before, more ran out of memory."""

    size: int


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The captions and their files are written; only the report page may follow."""

    outcome: RunOutcome


@dataclass(frozen=True, slots=True)
class Reporting:
    """The report page is being written.

    Attributes:
        path: The page.
        done: Number of pictures on it.
        total: Number of pictures of the run.
    """

    path: Path
    done: int
    total: int


ExecutorEvent = Ready | BatchReduced | CaptionRecord
"""An event that an executor yields."""

RunEvent = (
    Started
    | Resumed
    | Unlocked
    | BatchLimited
    | ModelLoading
    | Stopping
    | ExecutorEvent
    | RunEnded
    | Reporting
)
"""An event of a run."""
