"""Work in a background thread that does not delay the end of the program."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

_T = TypeVar("_T")


def in_background(work: Callable[[], _T], *, name: str) -> Future[_T]:
    """Start *work* in a daemon thread named *name*, and return the future of its result.

    The future cannot be cancelled.
    """
    result: Future[_T] = Future()
    # The work cannot be cancelled: a cancelled future would refuse its result.
    result.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # the edge of a worker: passed on to the caller
            result.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return result
