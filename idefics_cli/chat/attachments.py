"""Staged pictures, which go with the next question: they are read once, and opened once a model."""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import io
import os
import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from idefics_cli.core.errors import ImageError
from idefics_cli.core.files import read_regular_file
from idefics_cli.core.sources import describe_source, is_clipboard, too_many_bytes
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.engine.protocol import OpenImage
from idefics_cli.images.formats import HEAD_BYTES, identify
from idefics_cli.images.sources import ImageSources

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from idefics_cli.images.media import Media

_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}  # others: Pillow's name
_PLAIN_SUFFIX = re.compile(r"\.[a-z0-9]{2,5}")
_DATA_START = "data:application/octet-stream;base64,"
_THUMBNAIL_EDGE = 512
_MOST_APPEARANCES = 16
_MOST_KEPT_BYTES = 1 << 31


@dataclass(frozen=True, slots=True)
class StagedPicture:
    """A picture that goes with the next question.

    Attributes:
        source: The source as the user typed it.
        data: The bytes of the file.
        width: Width in pixels, as a person sees the picture; 0 if unknown.
        height: Height in pixels, as a person sees the picture; 0 if unknown.
        is_turned: Whether the EXIF data say that the camera was turned or mirrored.
        part: The page or frame of the file that is shown, or the length of a video; "" if it is a
            whole picture.
        digest: SHA-256 of *data*, in hexadecimal; computed if not given.
        tokens: Number of tokens of the context that the picture takes; None until a model is
            loaded.
        thumbnail: RGB, upright, at most 512 pixels a side; None for a picture of an earlier turn.
    """

    source: str
    data: bytes
    width: int = 0
    height: int = 0
    is_turned: bool = False
    part: str = ""
    digest: str = ""
    tokens: int | None = None
    thumbnail: Image | None = None

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", hashlib.sha256(self.data).hexdigest())

    @property
    def attachment(self) -> Attachment:
        """The picture for a request; `PictureOpener` opens it from the bytes that are here."""
        return Attachment(self.source, self.digest)

    @property
    def suffix(self) -> str:
        """The suffix for a file of these bytes, such as `.png`."""
        content = identify(self.data[:HEAD_BYTES])
        if content.is_video:
            own = os.path.splitext(self.source)[1].lower()
            return own if _PLAIN_SUFFIX.fullmatch(own) else ".video"
        plugin = content.plugin
        if plugin is None:
            return ".bin"
        return _SUFFIXES.get(plugin, f".{plugin.lower()[:5]}")


@dataclass(frozen=True, slots=True)
class _Appearance:
    """How a picture looks to a person."""

    width: int
    height: int
    is_turned: bool
    part: str
    thumbnail: Image


CountTokens: TypeAlias = "Callable[[Attachment, OpenImage], int | None]"
"""Returns the number of tokens of a picture, which the second argument opens; None if unknown."""


@dataclass(frozen=True, slots=True)
class FileData:
    """Opens a picture, and gives the bytes of its file: a `FileOpener`."""

    open_image: OpenImage
    read: Callable[[Attachment], bytes]

    def __call__(self, attachment: Attachment, draft_edge: int) -> Media:
        """Open the picture."""
        return self.open_image(attachment, draft_edge)

    def read_file(self, attachment: Attachment) -> bytes:
        """Return the bytes of its file."""
        return self.read(attachment)


class PictureOpener:
    """Reads pictures from anywhere, and opens those of one chat.

    A model that is loaded opens a picture once, and the thumbnail comes from the same decoding.
    Before a model is loaded, the size at which it takes a JPEG is unknown. Then the thumbnail is
    decoded separately at a reduced size, and the model decodes the picture once when it is loaded.

    Args:
        limits: Limits on the pictures that are accepted.
        offline: Whether to refuse URLs.
        stdin: Standard input as bytes; None uses that of the process.
    """

    def __init__(
        self, limits: ImageLimits, *, offline: bool, stdin: BinaryIO | None = None
    ) -> None:
        self._limits = limits
        self._offline = offline
        self._stdin = stdin
        self._appearances: OrderedDict[str, _Appearance] = OrderedDict()

    def stage(
        self,
        source: str,
        count_tokens: CountTokens | None = None,
    ) -> StagedPicture:
        """Read a picture, and check that a model can take it.

        Args:
            source: See `Attachment.source`.
            count_tokens: Returns the number of tokens of a picture, and may call its second
                argument to open it; None if no model is loaded.

        Raises:
            ImageError: If the source cannot be read or is not a picture.
        """
        staged, copied = self._read(source)
        open_image = self._opener(staged, copied)
        tokens = count_tokens(staged.attachment, open_image) if count_tokens else None
        if staged.digest not in self._appearances:
            open_image(staged.attachment, _THUMBNAIL_EDGE).close()
        seen = self._appearances[staged.digest]
        return replace(
            staged,
            width=seen.width,
            height=seen.height,
            is_turned=seen.is_turned,
            part=seen.part,
            tokens=tokens,
            thumbnail=seen.thumbnail,
        )

    def count(self, staged: StagedPicture, count_tokens: CountTokens) -> StagedPicture:
        """Return *staged* with its number of tokens.

        Raises:
            ImageError: If the picture cannot be opened.
        """
        return replace(staged, tokens=count_tokens(staged.attachment, self._opener(staged, None)))

    def open_kept(self, attachment: Attachment, draft_edge: int) -> Media:
        """Open a picture or video of an earlier turn from the copy that the session keeps.

        This is an `OpenImage`.

        Raises:
            ImageError: If it cannot be opened.
        """
        from idefics_cli.images.media import MediaLoader

        stream = io.BytesIO(self.read_kept(attachment))
        loader = MediaLoader(self._limits)
        return loader.open_media_stream(stream, "picture", draft_edge=draft_edge)

    @property
    def kept(self) -> FileData:
        """What opens pictures of earlier turns, and gives their bytes: a `FileOpener`."""
        return FileData(self.open_kept, self.read_kept)

    def read_kept(self, attachment: Attachment) -> bytes:
        """Return the bytes of a picture of an earlier turn.

        Raises:
            ImageError: If they cannot be read.
        """
        try:
            return read_back(attachment)
        except OSError as error:
            raise ImageError(
                f"cannot read the copy of a picture, `{describe_source(attachment.source)}`: "
                + (error.strerror or str(error)).lower(),
                kind="missing",
                hint="`/images` lists the pictures, `/drop N` takes one out",
            ) from error

    def _read(self, source: str) -> tuple[StagedPicture, Image | None]:
        """Return a picture with its bytes; if it is from the clipboard, also the open image."""
        from idefics_cli.images.loader import ImageLoader

        if is_clipboard(source):
            copied = ImageLoader(self._limits).open(Attachment(source))
            buffer = io.BytesIO()
            copied.save(buffer, "PNG")
            return StagedPicture("clipboard", buffer.getvalue()), copied
        sources = ImageSources(self._limits, offline=self._offline, stdin=self._stdin)
        with sources.open(source) as stream:
            # The read stops one byte after the limit, because a sparse file can have more bytes
            # than the memory.
            data = stream.read(self._limits.max_bytes + 1)
        if len(data) > self._limits.max_bytes:
            raise too_many_bytes(source, self._limits)
        return StagedPicture(source, data), None

    def _opener(self, staged: StagedPicture, copied: Image | None) -> OpenImage:
        def open_image(attachment: Attachment, draft_edge: int) -> Media:
            # The image is made from the bytes that are kept, because the file may change, and stdin
            # can be read only once.
            media = copied or self._open(staged, draft_edge)
            self._remember(staged, media)
            return media

        return FileData(open_image, lambda attachment: staged.data)

    def _open(self, staged: StagedPicture, draft_edge: int) -> Media:
        from idefics_cli.images.media import MediaLoader

        stream = io.BytesIO(staged.data)
        loader = MediaLoader(self._limits)
        return loader.open_media_stream(stream, staged.source, draft_edge=draft_edge)

    def _remember(self, staged: StagedPicture, media: Media) -> None:
        from idefics_cli.images.loader import is_turned, shown_part
        from idefics_cli.images.media import first_frame
        from idefics_cli.images.video import Video

        if isinstance(media, Video):
            thumbnail = first_frame(media)
            part = f"video of {timedelta(seconds=int(media.facts.duration_seconds))}"
        else:
            thumbnail = media.copy()
            part = shown_part(io.BytesIO(staged.data))
        width, height = thumbnail.info.get("original_size", thumbnail.size)
        thumbnail.thumbnail((_THUMBNAIL_EDGE, _THUMBNAIL_EDGE))
        self._appearances[staged.digest] = _Appearance(
            width, height, is_turned(staged.data), part, thumbnail
        )
        while len(self._appearances) > _MOST_APPEARANCES:
            self._appearances.popitem(last=False)


def data_uri(data: bytes) -> str:
    """Return *data* as a `data:` URI, which `read_back` reads."""
    return _DATA_START + base64.b64encode(data).decode("ascii")


def is_data_uri(source: str) -> bool:
    """Whether *source* is a `data_uri`."""
    return source.startswith(_DATA_START)


def read_back(attachment: Attachment) -> bytes:
    """Return the bytes of a picture of a session, from its file or from a `data_uri`.

    Raises:
        OSError: If the file cannot be read, or has other bytes now.
    """
    if is_data_uri(attachment.source):
        try:
            data = base64.b64decode(attachment.source.removeprefix(_DATA_START), validate=True)
        except binascii.Error as error:
            raise OSError(errno.EINVAL, "its data is not base64") from error
    else:
        data = read_regular_file(Path(attachment.source), limit_bytes=_MOST_KEPT_BYTES)
    # A file with this name can have other bytes, because it is a link or the disk is damaged.
    if attachment.digest and hashlib.sha256(data).hexdigest() != attachment.digest:
        raise OSError(errno.EINVAL, "its bytes have changed")
    return data
