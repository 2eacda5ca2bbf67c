"""The image loader: any source becomes an upright RGB image, within limits."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, replace
from typing import BinaryIO

from PIL import Image, ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source, is_address
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.camera_raw import read_preview
from idefics_cli.images.cut import is_nearly_whole, with_end
from idefics_cli.images.facts import CameraRaw, RareKind
from idefics_cli.images.failures import as_image_error, unusable
from idefics_cli.images.formats import HEAD_BYTES, RAW_PLUGIN, FileFormat, identify
from idefics_cli.images.header import check_header, read_facts
from idefics_cli.images.icons import select_icon
from idefics_cli.images.jpeg2000 import HEAD_BYTES as HEAD_BYTES_OF_JPEG2000
from idefics_cli.images.jpeg2000 import resolutions
from idefics_cli.images.memory import MemoryBudget, decoding_bytes, limit_time, rgb_bytes
from idefics_cli.images.pillow_setup import (
    lenient_decoding,
    mute_libtiff,
    mute_warnings,
    set_pixel_limit,
)
from idefics_cli.images.pixels import (
    LARGE_PIXELS,
    exif_orientation,
    is_sideways,
    load_pixels,
    show_first_visible,
    turned,
    upright_rgb,
)
from idefics_cli.images.salvage import without_broken_metadata
from idefics_cli.images.sources import ImageSources

_MOST_RESCUED_BYTES = 1 << 29  # a damaged file is read into memory up to this size
# In these formats, the header has the real size. In others, the decoded picture may be larger than
# its header says, or turned.
_SIZE_IN_HEADER = frozenset({"JPEG", "PNG", "WEBP", "BMP", "GIF"})
_ANIMATIONS = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
_MOST_PAGES = 100  # each costs a read of its header


_MEMORY = MemoryBudget()


@dataclass(frozen=True, slots=True)
class _Job:
    """How to decode one file.

    Attributes:
        plugin: Pillow's name of the format.
        source: Name of the picture in errors.
        draft_edge: See `ImageLoader.open`.
        icc_profile: A colour profile that Pillow does not read from the file; None if it does.
        is_alone: Whether no other picture may be decoded at the same time.
    """

    plugin: str
    source: str
    draft_edge: int | None = None
    icc_profile: bytes | None = None
    is_alone: bool = False


class ImageLoader:
    """Opens pictures; any thread may use it.

    Args:
        limits: Limits of size and time.
        offline: Whether to refuse URLs.
        stdin: Standard input in bytes; None uses the stdin of the process when it is needed.
        memory: Budget of memory for decoding; by default all loaders share one.
        decode_seconds: Time limit of decoding one picture of a format whose decoder can be slow.
    """

    def __init__(
        self,
        limits: ImageLimits,
        *,
        offline: bool = False,
        stdin: BinaryIO | None = None,
        memory: MemoryBudget = _MEMORY,
        decode_seconds: float = 60.0,
    ) -> None:
        self._limits = limits
        self._memory = memory
        self._decode_seconds = decode_seconds
        self._sources = ImageSources(limits, offline=offline, stdin=stdin)
        set_pixel_limit(limits.max_pixels)

    def open(self, attachment: Attachment, *, draft_edge: int | None = None) -> Image.Image:
        """Return the first frame of a picture, decoded, upright and in RGB.

        Args:
            attachment: The picture.
            draft_edge: Length in pixels. A JPEG may be reduced by 2, 4 or 8 if both sides stay at
                least this long. This is several times faster; use it if the model reduces the
                picture anyway. Any picture of more than `LARGE_PIXELS` is reduced while its longest
                side stays at least this long.

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
        """Return the `original_size` that `open` would give; if possible, read only the header.

        Raises:
            ImageError: If the picture cannot be used. Damage after the header may stay unnoticed.
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
        job = _Job(content.plugin or "", source, draft_edge)
        with as_image_error(content, source):
            try:
                if job.plugin == RAW_PLUGIN:
                    return self._decode_raw(job, stream)
                return self._decode(job, stream)
            except CameraRaw:
                return self._decode_raw(job, stream)
            except MemoryError:
                # Other threads may have used the memory for their pictures. So this picture is
                # decoded once more, while no other thread decodes.
                return self._decode(replace(job, is_alone=True), stream)
            except (ImageError, RareKind, Image.DecompressionBombError):
                raise
            except Exception:  # see `as_image_error`
                image = self._rescue(job, stream)
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

    def _rescue(self, job: _Job, stream: BinaryIO) -> Image.Image | None:
        """Return a damaged picture if only metadata, or a small part of its end, is lost."""

        def decode(data: bytes, icc_profile: bytes | None = None) -> Image.Image | None:
            try:
                return self._decode(replace(job, icc_profile=icc_profile), io.BytesIO(data))
            except (ImageError, MemoryError):
                raise
            except Exception:  # see `as_image_error`
                return None

        stream.seek(0)
        data = stream.read(_MOST_RESCUED_BYTES)
        image = None
        if salvaged := without_broken_metadata(job.plugin, data):
            data = salvaged.data
            image = decode(data, salvaged.icc_profile)
        keeps_cut = self._limits.keeps_truncated
        if image is None and job.plugin == "JPEG":
            whole = with_end(data)
            if whole is not None and (keeps_cut or is_nearly_whole(data)):
                image = decode(whole)
        elif image is None and keeps_cut:
            with lenient_decoding():
                image = decode(data)
        return image

    def _decode_raw(self, job: _Job, stream: BinaryIO) -> Image.Image:
        preview = read_preview(stream)
        image = self._decode(replace(job, plugin="JPEG"), io.BytesIO(preview.data))
        return turned(image, preview.orientation)

    def _decode(self, job: _Job, stream: BinaryIO) -> Image.Image:
        stream.seek(0)
        if job.plugin == "ICO":
            stream, size = select_icon(stream)
            self._check_size(size, job.source)
        check_header(job.plugin, stream)
        image = _open_with(job.plugin, stream)
        self._check_size(image.size, job.source)
        facts = read_facts(image, stream)
        self._check_size(image.size, job.source)
        header_size = image.size
        is_reduced = _reduce_while_decoding(job, image, stream)
        count = decoding_bytes(image, header_size[0] * header_size[1])
        with self._memory.reserve(None if job.is_alone else count):
            limit_time(image, job.plugin, self._decode_seconds)
            pixels = load_pixels(image)
            if job.icc_profile is not None:
                pixels.info["icc_profile"] = job.icc_profile
            show_first_visible(pixels)
            # In HEIF files and icons, the size of the decoded picture may differ from the header.
            self._check_size(pixels.size, job.source)
            size = header_size if is_reduced else pixels.size
            if is_sideways(pixels):
                size = size[::-1]
            factor = _factor(pixels.size, job.draft_edge)
            background = self._limits.background
            upright = upright_rgb(pixels, facts, factor=factor, background=background)
            del image, pixels  # their memory is free before the next picture is decoded
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


def _reduce_while_decoding(job: _Job, image: ImageFile.ImageFile, stream: BinaryIO) -> bool:
    """Let the decoder of an unloaded *image* reduce it, if it can; return whether it does."""
    size = image.size
    # Drafts of other plugins differ: pillow-heif, for example, would return the embedded thumbnail.
    if job.draft_edge is not None and job.plugin == "JPEG":
        image.draft(None, (job.draft_edge, job.draft_edge))
    halvings = _factor(size, job.draft_edge).bit_length() - 1
    # The decoder would compute means of the indexes of a palette, which stand for unrelated
    # colours.
    if isinstance(image, Jpeg2KImageFile) and halvings and image.mode not in ("P", "PA"):
        stream.seek(0)
        if halvings <= resolutions(stream.read(HEAD_BYTES_OF_JPEG2000)):
            image.reduce = halvings
            return True
    return image.size != size


def _factor(size: tuple[int, int], draft_edge: int | None) -> int:
    """Return by how much a decoded picture of *size* is reduced, because it is too large."""
    factor = 1
    while (
        draft_edge is not None
        and rgb_bytes(-(-size[0] // factor), -(-size[1] // factor)) > rgb_bytes(LARGE_PIXELS, 1)
        and max(size) >= draft_edge * factor * 2
    ):
        factor *= 2
    return factor


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


def shown_part(stream: BinaryIO) -> str:
    """Return what `ImageLoader.open` shows of the readable picture file *stream*.

    Returns:
        As `page 1 of 4` or `one frame of an animation`; "" for the whole picture.
    """
    try:
        plugin = identify(stream.read(HEAD_BYTES)).plugin or ""
        stream.seek(0)
        image = _open_with(plugin, stream)
        if not getattr(image, "is_animated", False):
            return ""
        if plugin in _ANIMATIONS:
            return "one frame of an animation"
        if plugin != "TIFF":  # others have layers, thumbnails or the halves of a stereo picture
            return ""
        read_facts(image, stream)  # goes to the page that is the picture
        page = image.tell() + 1
        return f"page {page} of {_count_pages(image)}"
    except Exception:  # see `as_image_error`
        return ""


def _count_pages(image: Image.Image) -> str:
    count = image.tell() + 1
    with contextlib.suppress(EOFError):
        while count < _MOST_PAGES:
            image.seek(count)
            count += 1
        return f"{count} or more"
    return str(count)


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

    `Image.open` does the same, but before our limit is checked, it warns about pictures above the
    limit of Pillow, or refuses them.
    """
    if plugin not in Image.OPEN:
        Image.init()
    if plugin == "TIFF":
        mute_libtiff()
    return Image.OPEN[plugin][0](stream, "")
