"""The choice of the best picture in an icon or cursor file.

The result is a file with this picture only, in a form that Pillow decodes correctly.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

_MOST_ENTRIES = 256
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One picture of an icon. Its size and depth are read from the picture, not the directory."""

    width: int
    height: int
    bits: int
    is_png: bool
    offset: int
    length: int


def select_icon(stream: BinaryIO) -> tuple[BinaryIO, tuple[int, int]]:
    """Return an icon that contains only the best picture of an icon or cursor.

    The best is the largest and, of several, the one with the most bits per pixel. Pillow would
    choose the one with the fewest bits, and decode it before its size can be checked. Pillow also
    reads the fourth byte of a pixel as alpha, even if it is 0 in all pixels. Then the mask is used.

    Returns:
        The icon as a stream, and its (width, height) in pixels.

    Raises:
        ValueError: If the file has no picture.
    """
    stream.seek(0)
    head = stream.read(6)
    (count,) = struct.unpack("<H", head[4:6])
    rows = [stream.read(16) for _ in range(min(count, _MOST_ENTRIES))]
    entries = [entry for row in rows if (entry := _read_entry(stream, row)) is not None]
    if not entries:
        raise ValueError("no picture in the icon")
    best = max(entries, key=lambda entry: (entry.width * entry.height, entry.bits))
    stream.seek(best.offset)
    data = stream.read(best.length)
    bits = 24 if best.bits == 32 and not best.is_png and _is_clear(data, best) else best.bits
    if not best.is_png:
        data += _missing_mask(data, best)
    row = struct.pack(
        "<BBBBHHII", best.width % 256, best.height % 256, 0, 0, 1, bits, len(data), 22
    )
    return io.BytesIO(b"\0\0\1\0\1\0" + row + data), (best.width, best.height)


def _read_entry(stream: BinaryIO, row: bytes) -> _Entry | None:
    if len(row) < 16:
        return None
    length, offset = struct.unpack("<II", row[8:16])
    stream.seek(offset)
    head = stream.read(32)
    if head.startswith(_PNG) and len(head) >= 26:
        width, height, depth, kind = struct.unpack(">IIBB", head[16:26])
        return _Entry(width, height, depth * _PNG_CHANNELS.get(kind, 4), True, offset, length)
    if len(head) < 16 or head[:4] != b"\x28\0\0\0":
        return None
    # The height counts the rows of the picture and those of its mask, so it is halved.
    width, height, _, bits = struct.unpack("<iiHH", head[4:16])
    return _Entry(abs(width), abs(height) // 2, bits, False, offset, length)


def _is_clear(data: bytes, entry: _Entry) -> bool:
    pixels = entry.width * entry.height * 4
    row = (entry.width + 31) // 32 * 4
    has_mask = len(data) >= 40 + pixels + row * entry.height
    return has_mask and not any(data[43 : 40 + pixels : 4])


def _missing_mask(data: bytes, entry: _Entry) -> bytes:
    """Return a mask that clears nothing if *data* ends with the pixels.

    Pillow takes the last bytes of a bitmap for its mask, even if they are pixels.
    """
    (colours,) = struct.unpack_from("<I", data, 32)
    if colours == 0 and entry.bits <= 8:
        colours = 1 << entry.bits
    row = (entry.width * entry.bits + 31) // 32 * 4
    mask_bytes = (entry.width + 31) // 32 * 4 * entry.height
    rest = len(data) - 40 - 4 * colours - row * entry.height
    return bytes(mask_bytes) if 0 <= rest < mask_bytes else b""
