"""The loader: from any source to an upright RGB image, with limits."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image, ImageFile, ImageGrab, TiffImagePlugin

from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import (
    CLIPBOARD,
    describe_source,
    is_address,
    is_clipboard,
)
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.formats import CAMERA_RAW, HEAD_BYTES, FileFormat, identify
from idefics_cli.images.pillow_setup import mute_libtiff, mute_warnings, raise_pixel_limit
from idefics_cli.images.pixels import exif_orientation, is_sideways, upright_rgb
from idefics_cli.images.sources import ImageSources

_TAG_SUBFILE_TYPE, _TAG_HEIGHT, _TAG_SUB_IFDS, _TAG_DNG_VERSION = 254, 257, 330, 50706
# In other formats the decoded picture may be larger than in the header, or turned.
_SIZE_IN_HEADER = frozenset({"JPEG", "PNG", "WEBP", "BMP", "GIF"})
_UNSUPPORTED = re.compile(
    r"unsupported|not implemented|not available|not installed|cannot find loader"
    r"|conversion .*not supported|unknown (?:pixel|data organization|pcx mode)",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"too large|too much memory|exceeds limit", re.IGNORECASE)


class ImageLoader:
    """Opens pictures; any thread may use it.

    Args:
        limits: Limits of size and time.
        offline: Refuse URLs.
        stdin: Standard input in bytes; None uses the stdin of the process when it is needed.
    """

    def __init__(
        self, limits: ImageLimits, *, offline: bool = False, stdin: BinaryIO | None = None
    ) -> None:
        self._limits = limits
        self._sources = ImageSources(limits, offline=offline, stdin=stdin)
        raise_pixel_limit(limits.max_pixels)

    def open(self, attachment: Attachment, *, draft_edge: int | None = None) -> Image.Image:
        """Return the first frame of a picture, decoded, upright and in RGB.

        Args:
            attachment: The picture.
            draft_edge: Allow a JPEG to be reduced by 2, 4 or 8 while both sides stay at least this
                long. That is several times faster, if the model reduces the picture anyway.

        Returns:
            An RGB image whose `info` has only `original_size`, (width, height) of the upright
            source in pixels.

        Raises:
            ImageError: If the picture cannot be used.
        """
        source = attachment.source
        mute_warnings()
        if is_clipboard(source):
            grabbed = _grab()
            if isinstance(grabbed, Image.Image):
                return self._decode(grabbed, _CLIPBOARD_CONTENT, source, None)
            source = grabbed
        with self._sources.open(source) as stream:
            return self.open_stream(stream, source, draft_edge=draft_edge)

    def size(self, attachment: Attachment) -> tuple[int, int]:
        """Return the `original_size` that `open` would give, if possible from the header alone.

        Raises:
            ImageError: If the picture cannot be used; damage after the header may stay unnoticed.
        """
        source = attachment.source
        if is_clipboard(source):
            return _original_size(self.open(attachment))
        with self._sources.open(source) as stream:
            return self.stream_size(stream, source)

    def open_stream(
        self, stream: BinaryIO, source: str, *, draft_edge: int | None = None
    ) -> Image.Image:
        """Return the picture in *stream*; see `open`.

        Args:
            stream: A seekable stream at its beginning; it stays open.
            source: Name of the picture in errors.
            draft_edge: See `open`.
        """
        mute_warnings()
        content = _identify(stream, source)
        with _as_image_error(content, source):
            image = _open_with(content.plugin or "", stream)
        return self._decode(image, content, source, draft_edge)

    def stream_size(self, stream: BinaryIO, source: str) -> tuple[int, int]:
        """Return the size of the picture in *stream*; see `size` and `open_stream`."""
        mute_warnings()
        content = _identify(stream, source)
        if content.plugin not in _SIZE_IN_HEADER:
            return _original_size(self.open_stream(stream, source))
        with _as_image_error(content, source):
            image = _open_with(content.plugin, stream)
            self._check_size(image, source)
            return image.size[::-1] if is_sideways(image) else image.size

    def _decode(
        self, image: Image.Image, content: FileFormat, source: str, draft_edge: int | None
    ) -> Image.Image:
        with _as_image_error(content, source):
            self._check_size(image, source)
            _check_tiff(image, content, source)
            header_size = image.size
            # Other plugins also have drafts: pillow-heif would give the embedded thumbnail.
            if draft_edge is not None and content.plugin == "JPEG":
                image.draft(None, (draft_edge, draft_edge))
            is_reduced = image.size != header_size
            image.load()
            # With pillow-heif and icons, the picture may differ in size from its header.
            self._check_size(image, source)
            upright = upright_rgb(image)
        size = upright.size
        if is_reduced:
            size = header_size[::-1] if is_sideways(image) else header_size
        upright.info["original_size"] = size
        return upright

    def _check_size(self, image: Image.Image, source: str) -> None:
        width, height = image.size
        if width * height > self._limits.max_pixels:
            raise ImageError(
                f"`{describe_source(source)}` is too large: {width}x{height} pixels,"
                f" the limit is {self._limits.max_pixels}",
                kind="too_large",
                hint="raise --max-pixels, or shrink it first",
            )


def is_turned(data: bytes) -> bool:
    """Return whether the readable picture file *data* has to be turned to be upright."""
    plugin = identify(data[:HEAD_BYTES]).plugin
    return plugin is not None and exif_orientation(_open_with(plugin, io.BytesIO(data))) != 1


def _original_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.info["original_size"]
    return width, height


def _identify(stream: BinaryIO, source: str) -> FileFormat:
    try:
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
    except OSError as error:  # a failing disk, or a special file of the kernel
        raise ImageError(
            f"cannot read `{describe_source(source)}`: {abbreviated(error.strerror or '')}",
            kind="missing",
            hint="check the disk or the network folder",
        ) from error
    content = identify(head or b"")  # None: no data yet, as in /proc
    if content.plugin is None:
        hint = None
        if is_address(source) and content.name == "a web page":
            hint = "open it in a browser, and copy the address of the picture itself"
        raise _unusable(content, source, hint)
    if content.plugin == "HEIF":
        _register_heif(source)
    return content


def _unusable(content: FileFormat, source: str, hint: str | None = None) -> ImageError:
    return ImageError(
        f"cannot read `{describe_source(source)}`: it is {content.name}",
        kind=content.kind,
        hint=hint or content.hint,
    )


def _register_heif(source: str) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            f"cannot read `{describe_source(source)}`: it is a HEIC picture",
            kind="unsupported",
            hint="pip install 'idefics-cli[heif]'",
        ) from error
    pillow_heif.register_heif_opener()


def _open_with(plugin: str, stream: BinaryIO) -> ImageFile.ImageFile:
    """Read the header with one plugin of Pillow.

    `Image.open` does the same, but warns of or refuses every picture above its own limit, before
    our limit is checked.
    """
    if plugin not in Image.OPEN:
        Image.init()
    if plugin == "TIFF":
        mute_libtiff()
    return Image.OPEN[plugin][0](stream, "")


def _check_tiff(image: Image.Image, content: FileFormat, source: str) -> None:
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    # DNG, NEF, ARW: TIFF files whose first picture is only a thumbnail.
    tags = image.tag_v2
    is_thumbnail = tags.get(_TAG_SUBFILE_TYPE) == 1 and _TAG_SUB_IFDS in tags
    if _TAG_DNG_VERSION in tags or is_thumbnail:
        raise _unusable(CAMERA_RAW, source)
    # Pillow leaves missing strips black. `height` is the height of the upright picture.
    height = int(tags[_TAG_HEIGHT])
    bottom = max((tile.extents[3] for tile in image.tile if tile.extents), default=0)
    if bottom < height:
        raise _damaged(content, source, f"only {bottom} of {height} rows")


@contextmanager
def _as_image_error(content: FileFormat, source: str) -> Iterator[None]:
    """Convert any error of Pillow to an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise _too_large(content, source, "it needs too much memory") from error
    except Image.DecompressionBombError as error:
        raise _too_large(content, source, "it has too many pixels") from error
    except Exception as error:
        # With corrupt files, plugins of Pillow raise nearly every built-in error: OSError,
        # SyntaxError, struct.error, KeyError, OverflowError, ZeroDivisionError, zlib.error ...
        raise _damaged(content, source, str(error)) from error


def _damaged(content: FileFormat, source: str, reason: str) -> ImageError:
    name = describe_source(source)
    reason = abbreviated(reason or "no reason given")
    if _TOO_LARGE.search(reason):
        return _too_large(content, source, reason)
    if _UNSUPPORTED.search(reason):
        return ImageError(
            f"cannot read `{name}`: {content.name} of a rare kind ({reason})",
            kind="unsupported",
            hint="convert it to PNG or JPEG first",
        )
    return ImageError(
        f"cannot read `{name}`: {content.name} that is cut off or damaged ({reason})",
        kind="truncated",
        hint="copy or download it again",
    )


def _too_large(content: FileFormat, source: str, reason: str) -> ImageError:
    return ImageError(
        f"cannot read `{describe_source(source)}`: {content.name} that is too large ({reason})",
        kind="too_large",
        hint="shrink it first",
    )


_CLIPBOARD_CONTENT = FileFormat("a picture", "PNG")


def _grab() -> Image.Image | str:
    """Return the picture on the clipboard, or the path of the first copied file."""
    with _as_image_error(_CLIPBOARD_CONTENT, CLIPBOARD):
        try:
            grabbed = ImageGrab.grabclipboard()
        except (NotImplementedError, ChildProcessError, FileNotFoundError) as error:
            raise ImageError(
                f"cannot read `clipboard`: {abbreviated(str(error))}",
                kind="unsupported",
                hint="on Linux install wl-clipboard or xclip; without a desktop give a file",
            ) from error
    if not grabbed:
        raise ImageError(
            "the clipboard holds no picture", kind="missing", hint="copy a picture first"
        )
    return grabbed[0] if isinstance(grabbed, list) else grabbed
