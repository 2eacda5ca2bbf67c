"""The events of a captioning run, which a caller of the run can show."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from idefics_cli.caption.outcome import RunOutcome
from idefics_cli.caption.resume.todo import Todo
from idefics_cli.core.types import CaptionRecord


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins.

    Attributes:
        total: Number of pictures to caption.
        skipped: Number of other pictures, which have a caption already.
    """

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
    """The memory ran out; from now on the model answers *size* pictures at a time.

    Attributes:
        size: Number of pictures, at least 1.
        requests: Number of requests, which several questions about a picture share.
    """

    size: int
    requests: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Stopping:
    """The run was asked to stop. It finishes the current batch, and does not begin another one."""


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
class Kept:
    """A run that overwrites captions leaves *count* pictures alone: their texts are by a person."""

    count: int


@dataclass(frozen=True, slots=True)
class Unlocked:
    """The file system of the journal at *path* has no locks, so that another run could write."""

    path: Path


@dataclass(frozen=True, slots=True)
class BegunAnew:
    """The run, which may overwrite, does not continue an earlier run, for a *reason*."""

    reason: str


@dataclass(frozen=True, slots=True)
class BatchLimited:
    """The run begins with *size* pictures at a time.

    The memory was too small for more of them in an earlier call.
    """

    size: int


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The captions and all files of the run are written, except the report page."""

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


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker died. Another one takes its place, and its *count* pictures are tried again.

    Attributes:
        name: Name of the worker.
        reason: What is known about its death.
        count: Number of the pictures that it had.
    """

    name: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A worker cannot work; the others go on without it. The fields are those of `WorkerLost`."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerShares:
    """How many pictures each worker has done: the names and the numbers."""

    done: tuple[tuple[str, int], ...]


ExecutorEvent = Ready | BatchReduced | WorkerLost | WorkerGone | WorkerShares | CaptionRecord
"""An event that an executor yields."""

RunEvent = (
    Started
    | Resumed
    | Kept
    | Unlocked
    | BegunAnew
    | BatchLimited
    | ModelLoading
    | Stopping
    | ExecutorEvent
    | RunEnded
    | Reporting
)
"""An event of a run."""
