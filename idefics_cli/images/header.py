"""The reader of header facts: for each format, what Pillow ignores or misreads in the header."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import BinaryIO, cast

from PIL import ImageFile, PsdImagePlugin, TiffImagePlugin

from idefics_cli.images.camera_raw import is_camera_raw
from idefics_cli.images.colour import HLG, PQ
from idefics_cli.images.decoders import use_fast_decoders
from idefics_cli.images.facts import Box, CameraRaw, PixelFacts
from idefics_cli.images.jpeg2000 import HEAD_BYTES, check_jpeg2000
from idefics_cli.images.psd import check_psd_header, read_psd_facts
from idefics_cli.images.tiff import read_tiff_facts


def check_header(plugin: str, stream: BinaryIO) -> None:
    """Refuse a file that Pillow's plugin cannot open, if the error of the plugin would mislead.

    Raises:
        RareKind: If the file is of a kind that Pillow does not know.
        CameraRaw: If it is a camera raw file.
    """
    if plugin == "PSD":
        check_psd_header(stream)
    if plugin == "TIFF":
        if is_camera_raw(stream):
            raise CameraRaw
        stream.seek(0)


def read_facts(image: ImageFile.ImageFile, stream: BinaryIO) -> PixelFacts:
    """Return the facts about an unloaded *image*, and correct what Pillow has read of its header.

    Args:
        image: If its frame, tiles or palette are wrong, they are changed in place.
        stream: The file.

    Raises:
        RareKind: If the decoded pixels would be wrong.
    """
    read = _READERS.get(image.format or "")
    return read(image, stream) if read else PixelFacts()


# GIF and PNG -----------------------------------------------------------------------------------


def _gif(image: ImageFile.ImageFile, stream: BinaryIO) -> PixelFacts:
    # If a frame does not cover the canvas, Pillow fills the rest with the background colour, but
    # viewers leave the rest clear.
    box = image.tile[0].extents if image.tile else None
    is_part = box is not None and box != (0, 0, *image.size)
    return PixelFacts(frame=box if is_part and "transparency" not in image.info else None)


def _png(image: ImageFile.ImageFile, stream: BinaryIO) -> PixelFacts:
    # The default image of an animation can be a substitute for programs that cannot show
    # animations. It is then not a frame, so the first frame is shown instead.
    frame = None
    if getattr(image, "default_image", False):
        frame = _show_first_frame(image)
    stream.seek(0)
    head = stream.read(_HEAD_BYTES)
    _scale_colour_key(image, depth=head[24])
    facts = _hdr_facts(head[: head.find(b"IDAT")], b"cICP", "BB")
    return replace(facts, frame=frame)


_HEAD_BYTES = 1 << 16


def _show_first_frame(image: ImageFile.ImageFile) -> Box | None:
    """Go to the first frame of an animation whose default image is not a part of it.

    Pillow would draw the frame on the default image. An animation begins with a clear canvas (PNG,
    3rd edition, 13.2).

    Returns:
        The part of the canvas that the frame covers, if Pillow fills the rest with a colour.
    """
    image.seek(1)
    image._im = image._prev_im = None  # type: ignore[attr-defined]  # the default image
    box = image.tile[0].extents if image.tile else None
    is_part = box is not None and box != (0, 0, *image.size)
    return box if is_part and image.mode not in ("RGBA", "LA") else None


def _scale_colour_key(image: ImageFile.ImageFile, *, depth: int) -> None:
    """Convert a colour key from the *depth* of its PNG to the 8 bits of the decoded samples."""
    key = image.info.get("transparency")
    if isinstance(key, tuple):
        # PNG stores each value of a key in 16 bits, of which only the lowest *depth* bits count.
        # Pillow reduces 16-bit samples to their higher 8 bits.
        image.info["transparency"] = tuple(v >> 8 if depth == 16 else v & 0xFF for v in key)
    elif isinstance(key, int) and image.mode == "L" and depth in (2, 4):
        largest = (1 << depth) - 1
        image.info["transparency"] = (key & largest) * 255 // largest


def _base_media(image: ImageFile.ImageFile, stream: BinaryIO) -> PixelFacts:
    # In a file with a tone map (ISO 21496-1), the picture itself is not HDR.
    stream.seek(0)
    head = stream.read(_HEAD_BYTES)
    return PixelFacts() if b"tmap" in head[:256] else _hdr_facts(head, b"colrnclx", ">HH")


def _hdr_facts(head: bytes, name: bytes, layout: str) -> PixelFacts:
    """Return the primaries and the transfer that *head* states, if it is high dynamic range."""
    place = head.find(name)
    if place < 0 or place + 12 > len(head):
        return PixelFacts()
    primaries, transfer = struct.unpack_from(layout, head, place + len(name))
    is_hdr = transfer in (PQ, HLG)
    return PixelFacts(transfer=transfer, primaries=primaries) if is_hdr else PixelFacts()


# BMP, DDS, PNM, Targa --------------------------------------------------------------------------


def _bmp(image: ImageFile.ImageFile, stream: BinaryIO) -> PixelFacts:
    # Many programs name a mask of alpha but leave the alpha 0. Browsers show such a file opaque.
    return PixelFacts(may_be_unset=True)


def _tga(image: ImageFile.ImageFile, stream: BinaryIO) -> PixelFacts:
    if image.palette and image.palette.rawmode == "BGRA":
        image.palette.mode = "RGBA"  # Pillow 12 and earlier forget it
    # The low four bits of the descriptor count the bits of alpha (Truevision TGA 2.0, field 5.6).
    stream.seek(7)
    head = stream.read(11)
    if image.mode == "P" and head[0] == 32 and image.palette is not None:
        # In a palette of 32 bits, each colour has alpha, whatever these bits say.
        return PixelFacts(has_alpha=any(bytes(image.palette.palette)[3::4]))
    return PixelFacts(has_alpha=bool(head[10] & 0x0F))


def _dds(image: ImageFile.ImageFile, stream: BinaryIO) -> PixelFacts:
    place = stream.tell()
    stream.seek(80)
    (flags,) = struct.unpack("<I", stream.read(4))
    stream.seek(place)  # Pillow decodes from here
    if image.tile and image.tile[0].codec_name == "dds_rgb" and flags & _DDS_LUMINANCE:
        # A grey picture has a mask for red only, although some writers also set the flag of RGB.
        bits, masks = cast("tuple[int, tuple[int, ...]]", image.tile[0].args)
        image._mode = "LA" if len(masks) > 3 else "L"
        grey = (bits, (masks[0], *masks[3:]))
        image.tile = [tile._replace(args=grey) for tile in image.tile]
    use_fast_decoders(image)
    return PixelFacts()


_DDS_LUMINANCE = 0x20000


def _pnm(image: ImageFile.ImageFile, stream: BinaryIO) -> PixelFacts:
    use_fast_decoders(image)
    return PixelFacts()


def _psd(image: ImageFile.ImageFile, stream: BinaryIO) -> PixelFacts:
    assert isinstance(image, PsdImagePlugin.PsdImageFile)
    return read_psd_facts(image, stream)


def _tiff(image: ImageFile.ImageFile, stream: BinaryIO) -> PixelFacts:
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    return read_tiff_facts(image)


def _jpeg2000(image: ImageFile.ImageFile, stream: BinaryIO) -> PixelFacts:
    stream.seek(0)
    check_jpeg2000(stream.read(HEAD_BYTES), image.mode)
    return PixelFacts()


Reader = Callable[[ImageFile.ImageFile, BinaryIO], PixelFacts]
_READERS: dict[str, Reader] = {
    "BMP": _bmp,
    "GIF": _gif,
    "PNG": _png,
    "AVIF": _base_media,
    "HEIF": _base_media,
    "TGA": _tga,
    "DDS": _dds,
    "PPM": _pnm,
    "PSD": _psd,
    "TIFF": _tiff,
    "JPEG2000": _jpeg2000,
}
