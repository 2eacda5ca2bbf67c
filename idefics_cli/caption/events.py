"""The events of a captioning run, for those who show it."""

from __future__ import annotations

from dataclasses import dataclass

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


ExecutorEvent = Ready | BatchReduced | CaptionRecord
"""An event that an executor yields."""

RunEvent = Started | ModelLoading | Stopping | ExecutorEvent
"""An event of a run."""
