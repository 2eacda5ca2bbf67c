"""Pictures opened in threads ahead of the model, bounded in number and in pixels."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Event, Thread
from types import TracebackType
from typing import Self

from idefics_cli.caption.discover import Picture
from idefics_cli.caption.reading import Opened
from idefics_cli.core.types import CaptionRecord

Result = Opened | CaptionRecord
Open = Callable[[Picture], Result]
# Pictures that wait, with 12 bytes a pixel: 0.4 GB, and what is being opened on top.
_MAX_PIXELS = 32_000_000
_POLL_SECONDS = 0.1
# How long the end of a run waits for its readers.
_PATIENCE_SECONDS = 0.5


class ReadAhead:
    """The next pictures of a run.

    Args:
        pictures: Read as needed.
        open_: Makes a picture ready, or tells its failure; called in the threads.
        threads: How many.
        in_flight: Most pictures being opened; at least *threads*.
        size: Most pictures being opened or waiting.
    """

    def __init__(
        self,
        pictures: Iterable[Picture],
        open_: Open,
        *,
        threads: int,
        in_flight: int,
        size: int,
    ) -> None:
        self._pictures = iter(pictures)
        self._in_flight = max(in_flight, threads)
        self._size = max(size, self._in_flight)
        self._opening: deque[Future[Result]] = deque()
        self._waiting: list[Opened] = []
        self._readers = _Readers(open_, threads)

    def fill(self, stop: Event) -> tuple[list[Opened], list[CaptionRecord]]:
        """Return all pictures that wait, in order, and records of those that failed to open.

        It waits for every thread, so that what waits does not depend on which is faster; but no
        longer once *stop* is set. Nothing waits only when there are no more.
        """
        failures = []
        self._submit()
        while self._opening and not stop.is_set():
            try:
                result = self._opening[0].result(timeout=_POLL_SECONDS)
            except TimeoutError:
                continue
            self._opening.popleft()
            if isinstance(result, CaptionRecord):
                failures.append(result)
            else:
                self._waiting.append(result)
            self._submit()
        return self._waiting, failures

    def drop(self, pictures: Iterable[Opened]) -> None:
        """Forget *pictures*, which the model has got, and begin to open the next."""
        gone = set(pictures)
        self._waiting = [picture for picture in self._waiting if picture not in gone]
        self._submit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Open no more pictures; those that a thread is at are abandoned."""
        for future in self._opening:
            future.cancel()
        self._readers.close()

    def _submit(self) -> None:
        pixels = sum(p.pixels for o in self._waiting for p in o.first.pictures)
        while (
            len(self._opening) < self._in_flight
            and len(self._opening) + len(self._waiting) < self._size
            and pixels < _MAX_PIXELS
            and (picture := next(self._pictures, None)) is not None
        ):
            self._opening.append(self._readers.submit(picture))


class _Readers:
    """A thread pool that does not hold back the end of the program.

    `ThreadPoolExecutor` does: whoever presses Ctrl-C would wait for every slow server.
    """

    def __init__(self, open_: Open, threads: int) -> None:
        self._open = open_
        self._queue: SimpleQueue[tuple[Future[Result], Picture] | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._work, name=f"read-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, picture: Picture) -> Future[Result]:
        future: Future[Result] = Future()
        self._queue.put((future, picture))
        return future

    def close(self) -> None:
        """End the threads; wait a moment for those that are not at a slow server.

        A thread that is inside of torch when the interpreter ends takes the process down.
        """
        for _ in self._threads:
            self._queue.put(None)
        until = time.monotonic() + _PATIENCE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            future, picture = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._open(picture))
            except BaseException as error:  # a bug, which ends the run in the caller's thread
                future.set_exception(error)
