"""The checks of `--dry-run`: which pictures cannot be read, and how long the run would take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Event

from idefics_cli.caption.events import Ready
from idefics_cli.caption.executors import EXECUTORS
from idefics_cli.caption.executors.reading import MakeReader, PictureReader
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob
from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import is_uri
from idefics_cli.core.types import CaptionRecord, ImageLimits, Progress
from idefics_cli.engine.protocol import EngineFactory

_PROBED = 3  # pictures that are captioned to estimate the time
# The first batch of a fast model takes several times as long as later ones. So if the first
# pictures take less time than this, the estimate comes from a second round, which takes at most
# about this time.
_QUICK_SECONDS = 2.0
_BATCHES = 4  # most batches of these pictures


def unreadable(
    pictures: Iterable[CaptionItem], limits: ImageLimits, *, takes_videos: bool = False
) -> Iterator[tuple[CaptionItem, ImageError]]:
    """Yield those of *pictures* with an error in the header, each with it; URLs are not opened.

    A file with a good header may still be cut off after it. Only decoding would show that.

    Args:
        pictures: The pictures.
        limits: The limits of a picture.
        takes_videos: Whether the model takes videos, too.
    """
    from idefics_cli.images.media import MediaLoader

    loader = MediaLoader(limits, takes_videos=takes_videos)
    for picture in pictures:
        if not is_uri(picture.attachment.source):
            try:
                loader.size(picture.attachment)
            except ImageError as error:
                yield picture, error


def seconds_per_picture(
    job: CaptionJob,
    factory: EngineFactory,
    *,
    make_reader: MakeReader = PictureReader,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> float | None:
    """Caption a few pictures of *job*, and return the seconds per picture.

    The first three are the first, the middle and the last of the job. If they are captioned
    quickly, four batches follow, and the time of these counts. The pictures are read from the disk
    as in a run. The time for loading the model does not count.

    Args:
        job: What to do.
        factory: Makes the engine.
        make_reader: Makes the reader of the items of *job*.
        clock: Returns seconds.
        progress: Called while the model loads, and with a new phase when it is loaded.

    Returns:
        None if every picture failed.

    Raises:
        IdeficsError: If the model cannot be loaded.
    """
    probes = _Probes(job, clock)
    executor = EXECUTORS["local"](factory, job, make_reader=make_reader)
    for event in executor.caption(probes, Event(), progress=progress):
        if isinstance(event, CaptionRecord):
            probes.note(event)
        elif isinstance(event, Ready):
            probes.start_clock()
            if progress is not None:
                progress("captioning a few pictures", None)
    return probes.seconds


class _Probes:
    """An iterator of the pictures that are captioned. The end of the first round may add a second.

    Attributes:
        seconds: Seconds per picture of the last round; None if no picture was captioned.
    """

    def __init__(self, job: CaptionJob, clock: Callable[[], float]) -> None:
        self._job = job
        self._clock = clock
        self._next: deque[CaptionItem] = deque()
        self._given: set[CaptionItem] = set()
        self.seconds: float | None = None
        self._add(_spread(job.pictures, _PROBED))

    def start_clock(self) -> None:
        """Begin to measure a round."""
        self._begun, self._captioned = self._clock(), 0

    def note(self, record: CaptionRecord) -> None:
        """Count a record; after the last one of the round, compute `seconds`."""
        self._left -= 1
        self._captioned += record.error is None
        if self._left or not self._captioned:
            return
        elapsed, is_first = self._clock() - self._begun, self.seconds is None
        self.seconds = elapsed / self._count
        if is_first and elapsed < _QUICK_SECONDS:
            count = int(_QUICK_SECONDS / max(self.seconds, 1e-3))
            others = [p for p in self._job.pictures if p not in self._given]
            self._add(_spread(others, min(count, _BATCHES * self._job.batch_size)))
            self.start_clock()

    def _add(self, pictures: Sequence[CaptionItem]) -> None:
        self._next += pictures
        self._given.update(pictures)
        self._count = self._left = len(pictures)

    def __iter__(self) -> Iterator[CaptionItem | None]:
        return self

    def __next__(self) -> CaptionItem | None:
        if self._next:
            return self._next.popleft()
        if self._left:  # the end of this round may add another one
            return None
        raise StopIteration


def _spread(pictures: Sequence[CaptionItem], count: int) -> list[CaptionItem]:
    """Return *count* of *pictures*, evenly from the first to the last."""
    count = min(count, len(pictures))
    return [pictures[i * (len(pictures) - 1) // max(1, count - 1)] for i in range(count)]
