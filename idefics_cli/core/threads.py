"""Work that its caller can stop waiting for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

_T = TypeVar("_T")


def in_background(work: Callable[[], _T], *, name: str) -> Future[_T]:
    """Begin *work* in a thread that does not keep the program from ending; return its result."""
    result: Future[_T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # a worker's edge: it goes to whoever waits
            result.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return result
