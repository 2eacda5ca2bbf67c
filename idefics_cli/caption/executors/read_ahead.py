"""Read-ahead: threads open pictures before the model needs them, within limits."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from operator import itemgetter
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

from idefics_cli.caption.executors.reading import Opened
from idefics_cli.caption.executors.supply import Supply
from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.types import CaptionRecord

Result = Opened | CaptionRecord
Open = Callable[[CaptionItem], Result]
# Maximum number of pixels of all opened pictures that wait for the model. At 3 bytes per pixel they
# take 0.1 GB. Pictures that are still being opened take further memory.
_MAX_PIXELS = 32_000_000
# `close` waits at most this long for the reader threads, because a slow server could keep one of
# them busy much longer.
_CLOSE_SECONDS = 0.5


class ReadAhead:
    """The next pictures of a run.

    Args:
        pictures: Iterated as needed; None stands for a picture that may not begin yet.
        open_: Opens a picture, or returns the record of its failure; called in the threads.
        threads: Number of threads.
        in_flight: Largest number of pictures that are being opened; at least *threads*.
        size: Largest number of pictures that are being opened or wait to be captioned.
    """

    def __init__(
        self,
        pictures: Iterable[CaptionItem | None],
        open_: Open,
        *,
        threads: int,
        in_flight: int,
        size: int,
    ) -> None:
        self._supply = Supply(pictures)
        self._in_flight = max(in_flight, threads)
        self._size = max(size, self._in_flight)
        # The numbers in `_opening` and `_waiting` are positions of pictures in the run.
        self._opening: dict[int, Future[Result]] = {}
        self._waiting: list[tuple[int, Opened]] = []
        self._submitted = 0
        # Number of pixels of all pictures in `_waiting`, which `_MAX_PIXELS` limits.
        self._pixels = 0
        self._readers = _Readers(open_, threads)

    @property
    def waiting(self) -> list[Opened]:
        """The opened pictures, in the order of the run."""
        return [opened for _, opened in self._waiting]

    @property
    def is_opening(self) -> bool:
        """Whether a thread is opening a picture."""
        return bool(self._opening)

    @property
    def is_over(self) -> bool:
        """Whether there are no more pictures."""
        return self._supply.is_exhausted and not self._opening and not self._waiting

    def collect(self) -> list[CaptionRecord]:
        """Collect the pictures that the threads have opened; return the records of failures."""
        failures = []
        for number in [number for number, future in self._opening.items() if future.done()]:
            result = self._opening.pop(number).result()
            if isinstance(result, CaptionRecord):
                failures.append(result)
            else:
                insort(self._waiting, (number, result), key=itemgetter(0))
                self._pixels += _pixels(result)
        self._submit()
        return failures

    def drop(self, opened: Opened) -> None:
        """Drop a picture that the model has received, and begin to open another one."""
        before = len(self._waiting)
        self._waiting = [pair for pair in self._waiting if pair[1] is not opened]
        self._pixels -= _pixels(opened) * (before - len(self._waiting))
        self._submit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Open no more pictures, and abandon those that are being opened."""
        for future in self._opening.values():
            future.cancel()
        self._readers.close()

    def _submit(self) -> None:
        while (
            len(self._opening) < self._in_flight
            and len(self._opening) + len(self._waiting) < self._size
            and self._pixels < _MAX_PIXELS
            and (picture := self._supply.next_picture()) is not None
        ):
            self._opening[self._submitted] = self._readers.submit(picture)
            self._submitted += 1


def _pixels(opened: Opened) -> int:
    return sum(picture.pixels for picture in opened.first.pictures)


class _Readers:
    """A thread pool that does not delay the end of the program.

    At the end of the program, Python waits for the threads of a `ThreadPoolExecutor`. After
    Ctrl-C, the user would then wait for every slow server.
    """

    def __init__(self, open_: Open, threads: int) -> None:
        self._open = open_
        self._queue: SimpleQueue[tuple[Future[Result], CaptionItem] | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._work, name=f"read-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, picture: CaptionItem) -> Future[Result]:
        future: Future[Result] = Future()
        self._queue.put((future, picture))
        return future

    def close(self) -> None:
        """End the threads, and wait a moment for them.

        A thread that still runs in torch when the interpreter ends would crash the process. Only a
        thread that waits for a slow server takes longer than that moment.
        """
        for _ in self._threads:
            self._queue.put(None)
        until = time.monotonic() + _CLOSE_SECONDS
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
