"""The loader: from any source to an upright RGB image, with limits."""

from __future__ import annotations

import io
from typing import BinaryIO

from PIL import Image, ImageFile

from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source, is_address
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.cut import is_nearly_whole, with_end
from idefics_cli.images.facts import CameraRaw, RareKind
from idefics_cli.images.failures import as_image_error, unusable
from idefics_cli.images.formats import HEAD_BYTES, FileFormat, identify
from idefics_cli.images.header import check_header, read_facts
from idefics_cli.images.icons import select_icon
from idefics_cli.images.pillow_setup import (
    lenient_decoding,
    mute_libtiff,
    mute_warnings,
    raise_pixel_limit,
)
from idefics_cli.images.pixels import exif_orientation, is_sideways, show_first_visible, upright_rgb
from idefics_cli.images.salvage import without_broken_metadata
from idefics_cli.images.sources import ImageSources

# In other formats the decoded picture may be larger than in the header, or turned.
_MOST_RESCUED_BYTES = 1 << 29  # damaged files are read into memory
_SIZE_IN_HEADER = frozenset({"JPEG", "PNG", "WEBP", "BMP", "GIF"})


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
        with self._sources.open(source) as stream:
            return self.open_stream(stream, source, draft_edge=draft_edge)

    def size(self, attachment: Attachment) -> tuple[int, int]:
        """Return the `original_size` that `open` would give, if possible from the header alone.

        Raises:
            ImageError: If the picture cannot be used; damage after the header may stay unnoticed.
        """
        source = attachment.source
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
        plugin = content.plugin or ""
        with as_image_error(content, source):
            try:
                return self._decode(plugin, stream, source, draft_edge)
            except (ImageError, RareKind, CameraRaw, MemoryError, Image.DecompressionBombError):
                raise
            except Exception:  # see `as_image_error`
                image = self._rescue(plugin, stream, source, draft_edge)
                if image is None:
                    raise
                return image

    def stream_size(self, stream: BinaryIO, source: str) -> tuple[int, int]:
        """Return the size of the picture in *stream*; see `size` and `open_stream`."""
        mute_warnings()
        content = _identify(stream, source)
        if content.plugin not in _SIZE_IN_HEADER:
            return _original_size(self.open_stream(stream, source))
        try:
            image = _open_with(content.plugin, stream)
        except Exception:  # perhaps only its metadata is broken
            stream.seek(0)
            return _original_size(self.open_stream(stream, source))
        with as_image_error(content, source):
            self._check_size(image.size, source)
            return image.size[::-1] if is_sideways(image) else image.size

    def _rescue(
        self, plugin: str, stream: BinaryIO, source: str, draft_edge: int | None
    ) -> Image.Image | None:
        """Return a damaged picture, if only metadata or a bit of the end is lost."""

        def decode(data: bytes, icc_profile: bytes | None = None) -> Image.Image | None:
            try:
                return self._decode(plugin, io.BytesIO(data), source, draft_edge, icc_profile)
            except (ImageError, MemoryError):
                raise
            except Exception:  # see `as_image_error`
                return None

        stream.seek(0)
        data = stream.read(_MOST_RESCUED_BYTES)
        image = None
        if salvaged := without_broken_metadata(plugin, data):
            data = salvaged.data
            image = decode(data, salvaged.icc_profile)
        keeps_cut = self._limits.keeps_truncated
        if image is None and plugin == "JPEG":
            whole = with_end(data)
            if whole is not None and (keeps_cut or is_nearly_whole(data)):
                image = decode(whole)
        elif image is None and keeps_cut:
            with lenient_decoding():
                image = decode(data)
        return image

    def _decode(
        self,
        plugin: str,
        stream: BinaryIO,
        source: str,
        draft_edge: int | None,
        icc_profile: bytes | None = None,
    ) -> Image.Image:
        if plugin == "ICO":
            stream, size = select_icon(stream)
            self._check_size(size, source)
        check_header(plugin, stream)
        image = _open_with(plugin, stream)
        self._check_size(image.size, source)
        facts = read_facts(image, stream)
        self._check_size(image.size, source)
        header_size = image.size
        # Other plugins also have drafts: pillow-heif would give the embedded thumbnail.
        if draft_edge is not None and plugin == "JPEG":
            image.draft(None, (draft_edge, draft_edge))
        is_reduced = image.size != header_size
        image.load()
        if icc_profile is not None:
            image.info["icc_profile"] = icc_profile
        show_first_visible(image)
        # With pillow-heif and icons, the picture may differ in size from its header.
        self._check_size(image.size, source)
        upright = upright_rgb(image, facts)
        size = upright.size
        if is_reduced:
            size = header_size[::-1] if is_sideways(image) else header_size
        upright.info["original_size"] = size
        return upright

    def _check_size(self, size: tuple[int, int], source: str) -> None:
        width, height = size
        if width * height > self._limits.max_pixels:
            raise ImageError(
                f"`{describe_source(source)}` is too large: {width}x{height} pixels,"
                f" the limit is {self._limits.max_pixels}",
                kind="too_large",
                hint="raise --max-pixels, or shrink it first",
            )


def is_turned(data: bytes) -> bool:
    """Return whether the readable picture file *data* has to be turned to be upright."""
    plugin = identify(data[:HEAD_BYTES]).plugin or ""
    salvaged = without_broken_metadata(plugin, data)
    for version in (data, salvaged.data if salvaged else None):
        try:
            return version is not None and (
                exif_orientation(_open_with(plugin, io.BytesIO(version))) != 1
            )
        except Exception:  # see `as_image_error`
            continue
    return False


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
        raise unusable(content, source, hint)
    if content.plugin == "HEIF":
        _register_heif(source)
    return content


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
