"""Pictures as they are sent to a server: the bytes of the file, or JPEG or PNG of bounded size."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from PIL import Image

from idefics_cli.core.colours import WHITE
from idefics_cli.core.errors import ImageError
from idefics_cli.core.servers import UPLOAD_EDGE
from idefics_cli.core.sources import describe_source
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.engine.protocol import FileOpener, OpenImage
from idefics_cli.images.media import Media, MediaLoader
from idefics_cli.models.families.picture import PreparedPicture

# The limits of `idefics serve`, if it is started without others.
_MOST_BYTES = 20_000_000
_MOST_PIXELS = 50_000_000
_HELD_BYTES = 256 * 2**20
_MOST_KNOWN_FILES = 4096
_JPEG_QUALITY = 95
# A picture that is sent as it is must still be one that can be read.
_CHECK_EDGE = 64


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes that are sent, and the size of the picture.

    Attributes:
        data: An image file.
        size: (width, height) of the upright source in pixels.
    """

    data: bytes
    size: tuple[int, int]

    @property
    def uri(self) -> str:
        """The picture as a `data:` URI."""
        return data_uri(self.data)


def data_uri(data: bytes) -> str:
    """Return an image file as a `data:` URI; our own server looks at the bytes for the format."""
    kind = "image/jpeg" if data[:2] == b"\xff\xd8" else "image/png"
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


class Uploads:
    """The pictures of requests, held within a limit of memory; any thread may use it.

    Args:
        limits: Limits of the image loader.
        offline: Whether to refuse URLs.
        sends_files: Whether the bytes of a file are sent as they are. Then the server decodes a
            picture exactly as this machine would.
    """

    def __init__(self, limits: ImageLimits, *, offline: bool, sends_files: bool) -> None:
        self._loader = MediaLoader(limits, offline=offline, takes_videos=False)
        # The server would choose other pixels below transparent parts, or refuse damaged files.
        is_usual = limits.background == WHITE and not limits.keeps_truncated
        self._sends_files = sends_files and is_usual
        self._lock = Lock()
        self._held: OrderedDict[bytes, Upload] = OrderedDict()
        self._held_bytes = 0
        self._by_file: OrderedDict[str, PreparedPicture] = OrderedDict()

    def prepare(self, attachment: Attachment, open_image: OpenImage | None) -> PreparedPicture:
        """Open a picture, check it, and hold what is sent.

        Raises:
            ImageError: If it cannot be opened, or exceeds a limit.
        """
        with self._lock:
            known = self._by_file.get(attachment.digest) if attachment.digest else None
        if known is not None:
            return known
        upload = self._make(attachment, open_image)
        digest = hashlib.sha256(upload.data).digest()
        picture = PreparedPicture(digest, upload.size, (upload.size[::-1],))
        with self._lock:
            self._hold(digest, upload)
            if attachment.digest:
                self._by_file[attachment.digest] = picture
                while len(self._by_file) > _MOST_KNOWN_FILES:
                    self._by_file.popitem(last=False)
        return picture

    def find(self, attachment: Attachment, picture: PreparedPicture) -> Upload:
        """Return what is sent for a prepared picture; it is opened again if it was dropped.

        Raises:
            ImageError: If it cannot be opened again, or has changed.
        """
        with self._lock:
            held = self._held.get(picture.digest)
        if held is not None:
            return held
        upload = self._make(attachment, None)
        if hashlib.sha256(upload.data).digest() != picture.digest:
            raise ImageError(
                f"`{describe_source(attachment.source)}` is another picture than when it was"
                " prepared",
                kind="truncated",
                hint="the file has changed",
            )
        return upload

    def _hold(self, digest: bytes, upload: Upload) -> None:
        if digest in self._held:
            return
        self._held[digest] = upload
        self._held_bytes += len(upload.data)
        while self._held_bytes > _HELD_BYTES and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._held_bytes -= len(dropped.data)

    def _make(self, attachment: Attachment, open_image: OpenImage | None) -> Upload:
        opener = open_image or _SourceOpener(self._loader)
        if self._sends_files and isinstance(opener, FileOpener):
            data = opener.read_file(attachment)
            if len(data) <= _MOST_BYTES:
                with self._opened(opener, attachment, _CHECK_EDGE) as image:
                    size = image.info.get("original_size", image.size)
                if size[0] * size[1] <= _MOST_PIXELS:
                    return Upload(data, size)
        with self._opened(opener, attachment, UPLOAD_EDGE) as image:
            return Upload(_encoded(image), image.info.get("original_size", image.size))

    def _opened(self, opener: OpenImage, attachment: Attachment, edge: int) -> Image.Image:
        media = opener(attachment, edge)
        if isinstance(media, Image.Image):
            return media
        media.close()
        raise ImageError(
            f"cannot send `{describe_source(attachment.source)}`: it is a video",
            kind="unsupported",
            hint="servers take pictures",
        )


class _SourceOpener:
    """Opens a picture by its source, which is read once; this is a `FileOpener`."""

    def __init__(self, loader: MediaLoader) -> None:
        self._loader = loader
        self._data: bytes | None = None

    def read_file(self, attachment: Attachment) -> bytes:
        if self._data is None:
            self._data = self._loader.read_bytes(attachment)
        return self._data

    def __call__(self, attachment: Attachment, draft_edge: int) -> Media:
        stream = io.BytesIO(self.read_file(attachment))
        return self._loader.open_media_stream(stream, attachment.source, draft_edge=draft_edge)


def _encoded(image: Image.Image) -> bytes:
    """Return an RGB image as JPEG, or as PNG if that is smaller."""
    scale = UPLOAD_EDGE / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    jpeg, png = io.BytesIO(), io.BytesIO()
    image.save(jpeg, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    image.save(png, "PNG")
    # PNG is smaller for drawings only.
    return min(jpeg.getvalue(), png.getvalue(), key=len)
