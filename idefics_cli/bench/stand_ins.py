"""What a benchmark with stand-ins for models measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """What a run with workers has measured, after all of them had begun.

    Attributes:
        rate: Pictures per second.
        driver_seconds: Processor time of this process for a picture, its row and its journal.
    """

    rate: float
    driver_seconds: float


RunWorkers = Callable[[int, int, float, Path], WorkerFigures]
"""Runs a number of workers, with a number of pictures for each, and its output in a folder.

A stand-in takes a number of seconds for a picture. It waits and computes nothing.
"""
MeasureBytes = Callable[[int, Path], float]
"""Returns the memory of this process for each of a number of pictures."""
