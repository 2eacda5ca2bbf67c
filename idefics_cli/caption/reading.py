"""A picture read from its file, made ready for the model, and the record of one that was not."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace

from idefics_cli.caption.discover import Picture
from idefics_cli.caption.job import CaptionJob, with_content_seed
from idefics_cli.caption.records import failed
from idefics_cli.caption.sinks.rows import is_uri
from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine import Engine, Prepared
from idefics_cli.models.image_sources import describe_source


@dataclass(frozen=True, slots=True)
class Content:
    """What was in a file: the fields of `CaptionRecord` of the same names."""

    sha256: str | None = None
    stamp: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A picture that waits for the model.

    Attributes:
        picture: Which.
        prepared: A request for each question; they share the picture, which was opened once.
        content: Of its file.
    """

    picture: Picture
    prepared: tuple[Prepared, ...]
    content: Content

    @property
    def first(self) -> Prepared:
        """The request of the first question, to look at the picture."""
        return self.prepared[0]


def open_picture(picture: Picture, job: CaptionJob, engine: Engine) -> Opened | CaptionRecord:
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


def _opened(picture: Picture, content: Content, job: CaptionJob, engine: Engine) -> Opened:
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


def read_content(picture: Picture) -> Content:
    """Return what identifies the content of *picture*; nothing for what is no readable file."""
    source = picture.attachment.source
    if is_uri(source):
        return Content(None, stamp_of(picture))
    # Read for its digest, a file is in the memory of the system when it is opened to be decoded.
    stamp = stamp_of(picture)
    if not os.path.isfile(source):  # a pipe may have no end
        return Content(None, stamp)
    try:
        with open(source, "rb") as file:
            return Content(hashlib.file_digest(file, "sha256").hexdigest(), stamp)
    except OSError:  # told by who opens it as a picture
        return Content(None, stamp)


def stamp_of(picture: Picture) -> str | None:
    """Return what tells that *picture* is as it was: its file's stamp, `#`, its columns' digest.

    While size and time of change are the same, the content of a file is taken to be. What is no
    file has nothing before the `#`, and a picture without columns nothing from it on; with
    neither it is None.
    """
    source = picture.attachment.source
    stamp = None if is_uri(source) else stamp_of_file(source)
    if not picture.columns:
        return stamp
    columns = hashlib.sha256(repr(sorted(picture.columns)).encode("utf-8", "surrogateescape"))
    return f"{stamp or ''}#{columns.hexdigest()[:16]}"


def stamp_of_file(path: str | os.PathLike[str]) -> str | None:
    """Return the size and time of change of a file; None if it is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: NUL in the name
        return None
    return f"{status.st_size}-{status.st_mtime_ns}"
