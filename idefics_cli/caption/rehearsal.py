"""The checks of `--dry-run`: which pictures cannot be read, and how long the run would take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from threading import Event

from idefics_cli.caption.events import Ready
from idefics_cli.caption.executors import EXECUTORS
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob
from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import is_uri
from idefics_cli.core.types import CaptionRecord, ImageLimits, Progress
from idefics_cli.engine.protocol import EngineFactory

_PROBED = 3  # pictures that are captioned to estimate the time


def unreadable(pictures: Iterable[CaptionItem], limits: ImageLimits) -> Iterator[ImageError]:
    """Yield the errors in the headers of *pictures*; URLs are not opened.

    A file with a good header may still be cut off after it. Only decoding would show that.
    """
    from idefics_cli.images.loader import ImageLoader

    loader = ImageLoader(limits)
    for picture in pictures:
        if not is_uri(picture.attachment.source):
            try:
                loader.size(picture.attachment)
            except ImageError as error:
                yield error


def seconds_per_picture(
    job: CaptionJob,
    factory: EngineFactory,
    *,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> float | None:
    """Caption up to three pictures of *job*, and return the seconds per picture.

    The pictures are the first, the middle and the last. They are read from the disk as in a run,
    and answered in one batch. The time for loading the model does not count.

    Args:
        job: What to do.
        factory: Makes the engine.
        clock: Returns seconds.
        progress: Called while the model loads, and with a new phase when it is loaded.

    Returns:
        None if every picture failed.

    Raises:
        IdeficsError: If the model cannot be loaded.
    """
    pictures = job.pictures
    count = min(_PROBED, len(pictures))
    chosen = tuple(pictures[i * (len(pictures) - 1) // max(1, count - 1)] for i in range(count))
    begun, captioned = 0.0, 0
    executor = EXECUTORS["local"](factory, replace(job, pictures=chosen))
    for event in executor.caption(chosen, Event(), progress=progress):
        if isinstance(event, CaptionRecord):
            captioned += event.error is None
        elif isinstance(event, Ready):
            begun = clock()
            if progress is not None:
                progress("captioning a few pictures", None)
    return (clock() - begun) / captioned if captioned else None
