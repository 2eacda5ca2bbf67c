"""Images that go with the next message."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from idefics_cli.core.sources import is_clipboard
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.formats import HEAD_BYTES, identify
from idefics_cli.images.sources import ImageSources

if TYPE_CHECKING:
    from PIL.Image import Image


_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}  # others: Pillow's name


_DATA_START = "data:application/octet-stream;base64,"


@dataclass(frozen=True, slots=True)
class Staged:
    """A picture that goes with the next question.

    Attributes:
        source: How the user named it, for people.
        data: The bytes of the picture file.
        width: Pixels, as seen by a person; 0 when unknown.
        height: As *width*.
        is_turned: Its EXIF data say that it was taken with the camera turned or mirrored.
    """

    source: str
    data: bytes
    width: int = 0
    height: int = 0
    is_turned: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def suffix(self) -> str:
        """What a file of these bytes is called by, as `.png`."""
        plugin = identify(self.data[:HEAD_BYTES]).plugin
        if plugin is None:
            return ".bin"
        return _SUFFIXES.get(plugin, f".{plugin.lower()[:5]}")


def stage(
    source: str, limits: ImageLimits, *, offline: bool = False, stdin: BinaryIO | None = None
) -> Staged:
    """Read a picture from anywhere, whole, and check that a model can be shown it.

    Args:
        source: As `Attachment.source`.
        limits: What is accepted.
        offline: Refuse addresses.
        stdin: Standard input as bytes; None takes that of the process.

    Raises:
        ImageError: If it cannot be read or is no picture.
    """
    from idefics_cli.images.loader import ImageLoader, is_turned

    loader = ImageLoader(limits, offline=offline, stdin=stdin)
    if is_clipboard(source):
        copied = loader.open(Attachment(source))
        buffer = io.BytesIO()
        copied.save(buffer, "PNG")
        return Staged("clipboard", buffer.getvalue(), *copied.size)
    with ImageSources(limits, offline=offline, stdin=stdin).open(source) as stream:
        data = stream.read()
    # From the very bytes that are kept: the file may change, and stdin is read once.
    image = loader.open_stream(io.BytesIO(data), source, draft_edge=1)
    width, height = image.info["original_size"]
    return Staged(source, data, width, height, is_turned(data))


def data_uri(staged: Staged) -> str:
    """Return the bytes of *staged* as a `data:` URI."""
    return _DATA_START + base64.b64encode(staged.data).decode("ascii")


_THUMBNAIL_EDGE = 512


@dataclass(frozen=True, slots=True)
class Attached:
    """A picture that goes with the next text.

    Attributes:
        staged: Its bytes, name and size.
        tokens: What it takes of the model's context; None until the model is loaded.
        thumbnail: RGB, upright, at most 512 pixels a side; None for one from an earlier turn.
    """

    staged: Staged
    tokens: int | None = None
    thumbnail: Image | None = None

    @property
    def attachment(self) -> Attachment:
        """The picture, for a request."""
        return Attachment(data_uri(self.staged))


def attach(source: str, limits: ImageLimits, *, offline: bool) -> Attached:
    """Open a picture from anywhere, and make a small one to show.

    Raises:
        ImageError: If it cannot be opened.
    """
    from idefics_cli.images.loader import ImageLoader

    staged = stage(source, limits, offline=offline)
    # The bytes are here, however large the file was.
    loader = ImageLoader(replace(limits, max_bytes=max(limits.max_bytes, len(staged.data))))
    image = loader.open(Attachment(data_uri(staged)), draft_edge=_THUMBNAIL_EDGE)
    image.thumbnail((_THUMBNAIL_EDGE, _THUMBNAIL_EDGE))
    return Attached(staged, thumbnail=image)
