"""The reader of pictures: it turns a file into requests that are ready for the model."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, with_content_seed
from idefics_cli.caption.records import failed
from idefics_cli.caption.resume.stamp import (
    FileContent,
    PictureFile,
    fetched_picture,
    read_picture,
    stamp_of,
)
from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source, is_remote
from idefics_cli.core.types import Attachment, CaptionRecord
from idefics_cli.engine.protocol import Engine, OpenImage, Prepared
from idefics_cli.engine.schema.form import ReplyForm
from idefics_cli.models.families.abilities import takes_videos

if TYPE_CHECKING:
    from idefics_cli.images.media import Media, MediaLoader


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A picture that waits for the model.

    Attributes:
        picture: The picture.
        prepared: One request for each of `CaptionJob.asked`; all share the picture, which was
            opened once.
        content: Digest and stamp of the file.
        form: What the reply to this request must be; None leaves it to `CaptionJob.form`.
    """

    picture: CaptionItem
    prepared: tuple[Prepared, ...]
    content: FileContent
    form: ReplyForm | None = None

    @property
    def first(self) -> Prepared:
        """The request of the first question."""
        return self.prepared[0]


class ItemReader(Protocol):
    """Turns the items of a job into requests; may be used from any thread."""

    def read(self, picture: CaptionItem) -> Opened | CaptionRecord:
        """Return *picture* as it waits for the model, or the record of the failure."""
        ...


MakeReader = Callable[[CaptionJob, Engine], ItemReader]
"""Makes the reader of a job, whose requests are prepared by an engine."""


class PictureReader:
    """Reads the pictures of a job; may be used from any thread.

    The bytes of a file are read once. Its digest, its size for the prompt and the decoded picture
    come from these bytes, which are dropped when the picture is ready for the model.

    Args:
        job: The job, with its questions.
        engine: Prepares the requests.
    """

    def __init__(self, job: CaptionJob, engine: Engine) -> None:
        from idefics_cli.images.media import MediaLoader

        self._job = job
        self._engine = engine
        self._loader = MediaLoader(
            job.limits, offline=engine.spec.offline, takes_videos=takes_videos(engine.spec)
        )

    def read(self, picture: CaptionItem) -> Opened | CaptionRecord:
        """Read *picture*, and prepare the requests about it.

        Returns:
            The opened picture; or the record of the failure, if the picture cannot be read or a
            request cannot be made.
        """
        if is_remote(picture.attachment.source):
            file = fetched_picture(picture, self._loader.read_bytes)
        else:
            file = read_picture(picture)
        try:
            return self._opened(picture, file)
        except Exception as error:  # a worker's edge
            content = file.content
            return replace(failed(picture.key, error), sha256=content.sha256, stamp=content.stamp)

    def _opened(self, picture: CaptionItem, file: PictureFile) -> Opened:
        if file.error is not None:
            raise file.error
        if file.has_changed:
            raise _changed(picture)
        requests = self._job.requests(picture, data=file.data)
        open_image = None if file.data is None else self._opener(picture.attachment, file.data)
        prepared = with_content_seed(self._engine.prepare(requests[0], open_image=open_image))
        # Without *data*, the engine has read the file a second time. A file that changed in between
        # is refused, because its digest would be wrong.
        if file.data is None and stamp_of(picture) != file.content.stamp:
            raise _changed(picture)
        others = (with_content_seed(replace(prepared, request=request)) for request in requests[1:])
        return Opened(picture, (prepared, *others), file.content)

    def _opener(self, picture: Attachment, data: bytes) -> OpenImage:
        return _Opener(self._loader, picture, data)


class _Opener:
    """Opens the picture of an item from its bytes, and others by their sources: a `FileOpener`."""

    def __init__(self, loader: MediaLoader, picture: Attachment, data: bytes) -> None:
        self._loader = loader
        self._picture = picture
        self._data = data

    def __call__(self, attachment: Attachment, draft_edge: int) -> Media:
        if attachment != self._picture:  # the picture of an example
            return self._loader.open_media(attachment, draft_edge=draft_edge)
        stream, source = io.BytesIO(self._data), attachment.source
        return self._loader.open_media_stream(stream, source, draft_edge=draft_edge)

    def read_file(self, attachment: Attachment) -> bytes:
        if attachment == self._picture:
            return self._data
        return self._loader.read_bytes(attachment)


def _changed(picture: CaptionItem) -> ImageError:
    return ImageError(
        f"`{describe_source(picture.key)}` changed while it was read",
        kind="truncated",
        hint="run the same command again when it is whole",
    )
