"""A picture read from its file, made ready for the model, and the record of one that was not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, with_content_seed
from idefics_cli.caption.records import failed
from idefics_cli.caption.resume.stamp import FileContent, read_content, stamp_of
from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine.protocol import Engine, Prepared


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A picture that waits for the model.

    Attributes:
        picture: Which.
        prepared: A request for each question; they share the picture, which was opened once.
        content: Of its file.
    """

    picture: CaptionItem
    prepared: tuple[Prepared, ...]
    content: FileContent

    @property
    def first(self) -> Prepared:
        """The request of the first question, to look at the picture."""
        return self.prepared[0]


def open_picture(picture: CaptionItem, job: CaptionJob, engine: Engine) -> Opened | CaptionRecord:
    """Read *picture* and make the questions of *job* about it ready; for any thread.

    Returns:
        The record of its failure, if it cannot be read or asked about.
    """
    # Before anything else: what is written to it from now on makes it another picture.
    content = read_content(picture)
    try:
        return _opened(picture, content, job, engine)
    except Exception as error:  # a worker's edge
        return replace(failed(picture.key, error), sha256=content.sha256, stamp=content.stamp)


def _opened(picture: CaptionItem, content: FileContent, job: CaptionJob, engine: Engine) -> Opened:
    requests = job.requests(picture)
    prepared = with_content_seed(engine.prepare(requests[0]))
    if stamp_of(picture) != content.stamp:
        raise ImageError(
            f"`{describe_source(picture.key)}` changed while it was read",
            kind="truncated",
            hint="run the same command again when it is whole",
        )
    others = (with_content_seed(replace(prepared, request=request)) for request in requests[1:])
    return Opened(picture, (prepared, *others), content)
