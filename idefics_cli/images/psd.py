"""Corrections for Photoshop files: Pillow misreads some channels of the merged picture."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from PIL import ImageFile, PsdImagePlugin

from idefics_cli.images.facts import PixelFacts, RareKind

_PSD_VERSION_INFO, _PSD_EXIF = 1057, 1058
_PSD_MULTICHANNEL = 7


def check_psd_header(stream: BinaryIO) -> None:
    """Refuse a Photoshop file of more than 8 bits; see `check_header`."""
    stream.seek(22)
    bits = int.from_bytes(stream.read(2))
    stream.seek(0)
    if bits > 8:
        raise RareKind(f"with {bits} bits a sample", _PSD_HINT)


def read_psd_facts(image: PsdImagePlugin.PsdImageFile, stream: BinaryIO) -> PixelFacts:
    """Correct the channels of a Photoshop file; see `read_facts`."""
    for number, _, data in image.resources:
        if number == _PSD_VERSION_INFO and data[4:5] == b"\0":
            raise RareKind("saved without its merged picture", _PSD_HINT)
        if number == _PSD_EXIF:
            image.info["exif"] = data  # for the orientation
    stream.seek(0)
    (channels,) = struct.unpack(">H", stream.read(14)[12:])
    stream.seek(24)
    if int.from_bytes(stream.read(2)) == _PSD_MULTICHANNEL:
        raise RareKind("with multichannel colours", _PSD_HINT)
    is_clear = _has_merged_alpha(image, stream)
    if image.mode == "RGBA" and not is_clear:
        image._mode = "RGB"  # the fourth channel is a saved selection
    elif image.mode == "RGB" and is_clear and channels > 3:
        image._mode = "RGBA"
    image.tile = _psd_tiles(image, stream, channels)
    return PixelFacts(may_be_blended=True)


_PSD_HINT = "export it as PNG, or save it with 8 bits and `maximize compatibility`"


def _has_merged_alpha(image: PsdImagePlugin.PsdImageFile, stream: BinaryIO) -> bool:
    """Whether the first channel after the colours is the transparency of the merged picture.

    If so, the number of layers is negative (Adobe Photoshop File Formats, "Layer info").
    """
    start = _psd_section(stream, 2)
    stream.seek(start)
    section_bytes, layers_bytes, count = struct.unpack(">IIh", stream.read(10).ljust(10, b"\0"))
    return bool(section_bytes >= 6 and layers_bytes >= 2 and count < 0)


def _psd_section(stream: BinaryIO, number: int) -> int:
    """Return the position of a section after the header: 1 resources, 2 layers, 3 pixels."""
    position = 26
    for _ in range(number):
        stream.seek(position)
        position += 4 + int.from_bytes(stream.read(4))
    return position


def _psd_tiles(
    image: PsdImagePlugin.PsdImageFile, stream: BinaryIO, channels: int
) -> list[ImageFile._Tile]:
    """Return the tiles of the channels, computed from the row sizes of all channels in the file.

    Pillow counts only the channels that it decodes, and so finds wrong offsets if there are more.
    """
    width, height = image.size
    start = _psd_section(stream, 3)
    stream.seek(start)
    compression = int.from_bytes(stream.read(2))
    boxes: Iterable[list[Row]]
    if compression == 0:
        row_bytes = (width + 7) // 8 if image.mode == "1" else width
        starts = [start + 2 + i * row_bytes * height for i in range(channels)]
        boxes = [[(offset, (0, 0, width, height))] for offset in starts]
    elif compression == 1:
        boxes = _psd_rows(stream, channels, width, height)
        # Each row is a tile, and Pillow reads a block of `decodermaxblock` bytes for each tile.
        # This number is enough for a row. The default of 64 KiB would read many rows each time.
        image.decodermaxblock = 2 * width + 2
    else:
        raise RareKind("with a compression of layers", _PSD_HINT)
    inverted = ";I" if image.mode in ("CMYK", "1") else ""
    codec = "packbits" if compression else "raw"
    return [
        ImageFile._Tile(codec, box, offset, band + inverted)
        for band, rows in zip(image.getbands(), boxes, strict=False)
        for offset, box in rows
    ]


Row = tuple[int, tuple[int, int, int, int]]


def _psd_rows(stream: BinaryIO, channels: int, width: int, height: int) -> Iterator[list[Row]]:
    """Yield for each channel where the compressed rows begin, and their boxes in the picture.

    Some programs write bytes after the last pixel of a row, which must not go into the next one.
    """
    table = stream.read(2 * channels * height)
    offset = stream.tell()
    lengths = iter(struct.unpack(f">{channels * height}H", table))
    for _ in range(channels):
        rows: list[Row] = []
        for top in range(height):
            rows.append((offset, (0, top, width, top + 1)))
            offset += next(lengths)
        yield rows
