"""The pictures and videos of training data: opened again and again, by their files."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from idefics_cli.core.errors import ImageError
from idefics_cli.core.files import cannot_write, write_whole
from idefics_cli.core.sources import describe_source, kind_of_source, source_of
from idefics_cli.core.types import Attachment, ImageLimits, PictureDetail
from idefics_cli.images.media import MediaLoader
from idefics_cli.images.sources import ImageSources
from idefics_cli.images.video import Video
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.picture import PictureTensors, PreparedPicture
from idefics_cli.models.families.resize import enlarged
from idefics_cli.models.families.videos import VideoFamily
from idefics_cli.models.kernels.openmp import one_thread

_BLOCK_BYTES = 2**20


class TrainingPictures:
    """Opens the pictures of training data; safe in any thread.

    A picture that is no file, but a URL or bytes in a row, is written to a file once: each epoch
    may read it, and its bytes need not stay in memory. A video counts as a picture, if the model
    takes videos.

    Args:
        family: Family of the model.
        folder: Folder for these files, which exists. Its owner removes it.
        limits: Limits of the image loader.
        offline: Whether to refuse URLs.
    """

    def __init__(
        self,
        family: Family,
        folder: Path,
        *,
        limits: ImageLimits | None = None,
        offline: bool = False,
    ) -> None:
        self._family = family
        self._folder = folder
        limits = limits or ImageLimits()
        takes_videos = isinstance(family, VideoFamily)
        self._loader = MediaLoader(limits, offline=offline, takes_videos=takes_videos)
        self._sources = ImageSources(limits, offline=offline, stdin=None)
        self._known: dict[tuple[str, PictureDetail], tuple[Attachment, PreparedPicture]] = {}

    def __len__(self) -> int:
        """Return the number of different pictures that `prepare` has opened."""
        return len({attachment.digest for attachment, _ in self._known.values()})

    def prepare(self, attachment: Attachment) -> tuple[Attachment, PreparedPicture]:
        """Open and preprocess a picture.

        Returns:
            The attachment of its file, with the digest of its bytes; and the picture.

        Raises:
            ImageError: If the picture cannot be used.
            IdeficsError: If its file cannot be written.
        """
        key = attachment.source, attachment.detail
        if (known := self._known.get(key)) is not None:
            return known
        with self._sources.open(attachment.source) as stream:
            digest = _digest_of(stream)
            stream.seek(0)
            source = self._file(attachment.source, stream, digest)
            kept = replace(attachment, source=source, digest=digest)
            stream.seek(0)
            result = kept, self._preprocess(stream, attachment.source, attachment.detail).picture
        # A `data:` URI contains the whole picture. It is not kept as a key, because it would stay
        # in memory.
        self._known[kept.source, kept.detail] = result
        if kind_of_source(attachment.source) != "data":
            self._known[key] = result
        return result

    def preprocess(self, attachment: Attachment) -> PictureTensors:
        """Return the tensors of a picture, whose file is opened again.

        Raises:
            ImageError: If the picture cannot be used, or its file is not the one that `prepare`
                opened.
        """
        with self._sources.open(attachment.source) as stream:
            if attachment.digest:
                _check_digest(stream, attachment)
            return self._preprocess(stream, attachment.source, attachment.detail)

    def _preprocess(self, stream: BinaryIO, source: str, detail: PictureDetail) -> PictureTensors:
        family = self._family.in_detail(detail)
        media = self._loader.open_media_stream(stream, source, draft_edge=family.draft_edge)
        with one_thread():
            if not isinstance(media, Video):
                return family.preprocess(enlarged(media))
            with media:
                assert isinstance(family, VideoFamily), "the loader opens no videos for others"
                return family.preprocess_video(media)

    def _file(self, source: str, stream: BinaryIO, digest: str) -> str:
        """Return the source of the file with the bytes of *stream*."""
        if kind_of_source(source) == "file":
            return source
        path = self._folder / digest
        try:
            if not path.exists():
                write_whole(path, stream.read(), durable=False)
        except OSError as error:
            raise cannot_write(path, error) from error
        return source_of(str(path))


def _digest_of(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _check_digest(stream: BinaryIO, attachment: Attachment) -> None:
    if _digest_of(stream) != attachment.digest:
        raise ImageError(
            f"`{describe_source(attachment.source)}` has changed since the training began",
            kind="truncated",
            hint="train again with `--overwrite`",
        )
    stream.seek(0)
