"""The loader of pictures and videos: any source becomes an image, or an open video."""

from __future__ import annotations

from contextlib import ExitStack
from typing import BinaryIO

from PIL import Image

from idefics_cli.core.types import Attachment
from idefics_cli.images.formats import HEAD_BYTES, FileFormat, identify
from idefics_cli.images.loader import ImageLoader
from idefics_cli.images.video import Video


class MediaLoader(ImageLoader):
    """Opens pictures and videos; any thread may use it."""

    def open_media(
        self, attachment: Attachment, *, draft_edge: int | None = None
    ) -> Image.Image | Video:
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
    ) -> Image.Image | Video:
        """Return the picture or video in *stream*; see `open_media` and `open_stream`.

        A video keeps *stream*, and closes it.
        """
        if (content := identify_video(stream)) is not None:
            return Video(stream, source, content, limits=self._limits, memory=self._memory)
        return self.open_stream(stream, source, draft_edge=draft_edge)


def identify_video(stream: BinaryIO) -> FileFormat | None:
    """Return the format of the file in *stream*, at its beginning, if it is a video."""
    try:
        content = identify(stream.read(HEAD_BYTES) or b"")
        stream.seek(0)
    except OSError:  # the loader of pictures reports it
        return None
    return content if content.is_video else None
