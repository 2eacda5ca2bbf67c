"""The wait for results of the inference thread."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from typing import TypeVar

_T = TypeVar("_T")


def result_of(job: Future[_T]) -> _T:
    """Wait for *job* and return its result.

    Raises:
        RuntimeError: If the engine was closed before the job started.
    """
    try:
        return job.result()
    except CancelledError:
        raise RuntimeError("the engine was closed meanwhile") from None
