"""JPEG 2000 files that Pillow decodes to wrong colours (ISO/IEC 15444-1)."""

from __future__ import annotations

import struct

from idefics_cli.images.facts import RareKind

HEAD_BYTES = 1 << 20
"""Number of bytes that `check_jpeg2000` needs."""

_SIZ = struct.Struct(">8IH")  # sizes and offsets of the picture and its tiles, components (A.5.1)
_FEWEST_BITS = 5
_CIE_LAB, _CIE_JAB = 14, 19  # enumerated colour spaces (ISO/IEC 15444-2, M.11.7.3)
_COLOUR = 0  # the type of a channel in `cdef` (I.5.3.6)


def check_jpeg2000(head: bytes, mode: str) -> None:
    """Refuse a file whose decoded pixels would be wrong.

    Args:
        head: The first bytes of the file.
        mode: Pillow's mode of the picture.

    Raises:
        RareKind: If the pixels would be wrong.
    """
    start = head.find(b"\xff\x4f\xff\x51")  # SOC and SIZ
    if start < 0 or len(head) < start + 44:
        raise RareKind("without a size")
    *sizes, count = _SIZ.unpack_from(head, start + 8)
    table = head[start + 42 : start + 42 + 3 * count]
    depths = [(byte & 0x7F) + 1 for byte in table[::3]]
    # Pillow rounds deeper samples to 8 bits, and the largest ones overflow to 0: white becomes
    # black.
    if max(depths, default=8) > 8 and not mode.startswith("I"):
        raise RareKind(f"with {max(depths)} bits a sample")
    # Pillow shifts shallower samples to 8 bits without scaling them: 1-bit samples become 0 and
    # 128. It also shifts the indices of a palette, which must not change.
    fewest = 8 if mode in ("P", "PA") else _FEWEST_BITS
    if min(depths, default=8) < fewest:
        raise RareKind(f"with {min(depths)} bits a sample")
    if _is_palette_misread(head[:start], mode):
        raise RareKind("with an unusual palette")
    if _colour_space(head[:start]) in (_CIE_LAB, _CIE_JAB):
        raise RareKind("with Lab colours")
    factors = list(zip(table[1::3], table[2::3], strict=True))
    if len(set(factors)) > 1 and not _is_plain_subsampling(factors, sizes, mode):
        raise RareKind("with subsampled colours of an odd size")
    if not _are_channels_in_order(head[:start]):
        raise RareKind("with channels in another order")


def _is_plain_subsampling(factors: list[tuple[int, int]], sizes: list[int], mode: str) -> bool:
    """Return whether chroma has exactly a half or a quarter of the samples in each tile.

    Otherwise each row of chroma of Pillow is skewed against the one before.
    """
    if mode != "RGB" or factors[0] != (1, 1) or factors[1] != factors[2]:
        return False
    return all(
        not any(edge % factor for edge in _edges(sizes[i::2]))
        for i, factor in enumerate(factors[1])
    )


def _edges(sizes: list[int]) -> list[int]:
    """Return where the picture, and each of its tiles, begins and ends in one direction."""
    end, start, tile, tile_start = sizes
    return [end, start] if tile_start + tile >= end else [end, start, tile, tile_start]


def _are_channels_in_order(boxes: bytes) -> bool:
    """Return whether the first channel is the first colour, and so on. Pillow assumes that."""
    place = boxes.find(b"cdef")
    if place < 0 or len(boxes) < place + 6:
        return True
    (count,) = struct.unpack_from(">H", boxes, place + 4)
    rows = struct.iter_unpack(">HHH", boxes[place + 6 : place + 6 + 6 * count][: 6 * count])
    return all(colour in (0, channel + 1) for channel, kind, colour in rows if kind == _COLOUR)


def resolutions(head: bytes) -> int:
    """Return how often the size of a picture can be halved while it is decoded; 0 if unknown."""
    place = head.find(b"\xff\x4f\xff\x51") + 2
    while place >= 2 and place + 10 <= len(head):
        marker, length = struct.unpack_from(">HH", head, place)
        if marker == _COD:
            return head[place + 9]
        if marker == _SOT or length < 2:
            break
        place += 2 + length
    return 0


_COD, _SOT = 0xFF52, 0xFF90  # coding style (A.6.1), and the first tile


def _is_palette_misread(boxes: bytes, mode: str) -> bool:
    """Return whether there is a palette that Pillow ignores, shortens or assigns wrongly.

    Pillow drops repeated colours, so that later indices move, and does not read the box `cmap`.
    """
    place = boxes.find(b"pclr")
    if place < 0:
        return False
    if mode not in ("P", "PA") or len(boxes) < place + 7:
        return True
    count, columns = struct.unpack_from(">HB", boxes, place + 4)
    start = place + 7 + columns
    table = boxes[start : start + count * columns]
    colours = {table[i : i + columns] for i in range(0, len(table), columns or 1)}
    rows = boxes.find(b"cmap") + 4
    is_in_order = rows < 4 or list(boxes[rows + 3 : rows + 4 * columns : 4]) == list(range(columns))
    return len(colours) != count or not is_in_order


def _colour_space(boxes: bytes) -> int | None:
    """Return the enumerated colour space of the box `colr` (I.5.3.3); None if it has a profile."""
    place = boxes.find(b"colr")
    if place < 0 or len(boxes) < place + 11 or boxes[place + 4] != 1:
        return None
    return int.from_bytes(boxes[place + 7 : place + 11])
