"""The loader of pictures and videos: any source becomes an image, or an open video."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import BinaryIO, TypeAlias

from PIL import Image

from idefics_cli.core.files import read_limited
from idefics_cli.core.sources import too_many_bytes
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.formats import HEAD_BYTES, FileFormat, identify
from idefics_cli.images.loader import ImageLoader
from idefics_cli.images.video import Video

Media: TypeAlias = Image.Image | Video
"""An image that `ImageLoader.open` returns, or an open video, which whoever takes it closes."""


class MediaLoader(ImageLoader):
    """Opens pictures and videos; any thread may use it.

    Args:
        limits: Limits of size and time.
        offline: Whether to refuse URLs.
        stdin: Standard input in bytes; None uses the stdin of the process when it is needed.
        takes_videos: Whether videos are opened, too. If not, they are errors, as in `ImageLoader`.
    """

    def __init__(
        self,
        limits: ImageLimits,
        *,
        offline: bool = False,
        stdin: BinaryIO | None = None,
        takes_videos: bool = True,
    ) -> None:
        super().__init__(limits, offline=offline, stdin=stdin)
        self._takes_videos = takes_videos

    def open_media(self, attachment: Attachment, *, draft_edge: int | None = None) -> Media:
        """Return a picture as `open` does, or the open video, which the caller closes.

        Raises:
            ImageError: If the source cannot be read, or holds neither.
        """
        with ExitStack() as stack:
            stream = stack.enter_context(self._sources.open(attachment.source))
            media = self.open_media_stream(stream, attachment.source, draft_edge=draft_edge)
            if isinstance(media, Video):
                stack.pop_all()
            return media

    def open_media_stream(
        self, stream: BinaryIO, source: str, *, draft_edge: int | None = None
    ) -> Media:
        """Return the picture or video in *stream*; see `open_media` and `open_stream`.

        A video keeps *stream*, and closes it.
        """
        if self._takes_videos and (content := identify_video(stream)) is not None:
            return Video(stream, source, content, limits=self._limits, memory=self._memory)
        return self.open_stream(stream, source, draft_edge=draft_edge)

    def stream_size(self, stream: BinaryIO, source: str) -> tuple[int, int]:
        """Return the size of the picture, or of the first frame of the video; see `size`."""
        if self._takes_videos and identify_video(stream) is not None:
            image = first_image(self.open_media_stream(stream, source))
            return image.width, image.height
        return super().stream_size(stream, source)

    def read_bytes(self, attachment: Attachment) -> bytes:
        """Return the bytes of a picture or video.

        Raises:
            ImageError: If the source cannot be read, or has more than `max_bytes`.
        """
        most = self._limits.max_bytes
        with self._sources.open(attachment.source) as stream:
            data = read_limited(stream, most + 1)
        if len(data) > most:
            raise too_many_bytes(attachment.source, self._limits)
        return data

    def read(self, attachment: Attachment) -> tuple[Attachment, Callable[[Attachment, int], Media]]:
        """Read the bytes of a picture or video, but do not decode them.

        Returns:
            The attachment with the digest of its bytes, and a function that opens these bytes as
            `open_media`. A file of more than `max_bytes` keeps its digest, and the function opens
            the file.

        Raises:
            ImageError: If the source cannot be read.
        """
        most = self._limits.max_bytes
        with self._sources.open(attachment.source) as stream:
            data = read_limited(stream, most + 1)
        if len(data) > most:
            return attachment, lambda each, edge: self.open_media(each, draft_edge=edge)
        return (
            replace(attachment, digest=hashlib.sha256(data).hexdigest()),
            lambda each, edge: self.open_media_stream(
                io.BytesIO(data), each.source, draft_edge=edge
            ),
        )


def first_image(media: Media) -> Image.Image:
    """Return a picture itself, or the first frame of a video, which is closed.

    Raises:
        ImageError: If the frame cannot be read.
    """
    if not isinstance(media, Video):
        return media
    with media:
        return first_frame(media)


def first_frame(video: Video) -> Image.Image:
    """Return the first frame of *video*, with `info` as of other images; the video stays open.

    Raises:
        ImageError: If the frame cannot be read.
    """
    (frame,) = video.read_frames([0])
    image = Image.fromarray(frame.pixels)
    image.info["original_size"] = image.size
    return image


def identify_video(stream: BinaryIO) -> FileFormat | None:
    """Return the format of the file in *stream*, at its beginning, if it is a video."""
    try:
        content = identify(stream.read(HEAD_BYTES) or b"")
        stream.seek(0)
    except OSError:  # the loader of pictures reports it
        return None
    return content if content.is_video else None
