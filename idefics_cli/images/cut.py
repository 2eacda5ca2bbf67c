"""JPEG files without their end: estimates of how much of the picture is lost."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from idefics_cli.images.salvage import jpeg_segments

_EOI = b"\xff\xd9"
# A block takes at least two bits: a DC code and an end of block. So 32 lost bytes hold at most 128
# blocks. The limit is higher, because a few more are lost together with the block that is cut.
_MOST_LOST_BLOCKS = 160
_MOST_LOST_SHARE = 1 / 8
_MOST_LOST_BYTES = 64
_MOST_SCAN_BYTES = 48
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_PROGRESSIVE = frozenset({0xC2, 0xCA})


def with_end(data: bytes) -> bytes | None:
    """Return a JPEG file with an end marker; None if it has one."""
    scan = data.rfind(b"\xff\xda")
    if scan < 0 or data.rfind(_EOI) > scan:
        return None
    return data.rstrip(b"\xff") + _EOI


def is_nearly_whole(data: bytes) -> bool:
    """Return whether a JPEG file without an end has lost no more than about 32 bytes.

    The number of missing bytes is unknown, but the lost part of the picture can be found: the file
    is decoded as it is, and with random data after the cut. The pixels that differ are lost.
    """
    frame = next(((m, b) for m, b, *_ in jpeg_segments(data) if m in _FRAMES), None)
    if frame is None:
        return False
    marker, body = frame
    count = body[5]
    factors = [(body[7 + 3 * i] >> 4, body[7 + 3 * i] & 15) for i in range(count)]
    scans = list(_scans(data))
    scan_bytes = len(data) - data.rfind(b"\xff\xda")
    is_progressive = marker in _PROGRESSIVE
    if is_progressive:
        components = [body[6 + 3 * i] for i in range(count)]
        if _lowest_bit(scans, components) > 0:
            # Scans are missing at the end. The file is accepted if the missing scans hold only the
            # lowest bit of the values, and if the earlier scans of one bit are small. The missing
            # scans were then small too.
            return _lowest_bit(scans[:-1], components) == 1 and _are_refinements_small(data)
    # A file with one scan is only accepted if that scan has all components.
    elif len(scans) != 1 or len(scans[0][0]) != count:
        return False
    width, height = max(h for h, _ in factors) * 8, max(v for _, v in factors) * 8
    blocks = sum(h * v for h, v in factors) if count > 1 else 1
    if count == 1 or is_progressive:
        width = height = 8
    lost, total = _lost_units(data, width, height)
    lost_bytes = lost * scan_bytes / max(1, total - lost)
    is_small = lost <= total * _MOST_LOST_SHARE or lost_bytes <= _MOST_LOST_BYTES
    return is_small and (is_progressive or lost * blocks <= _MOST_LOST_BLOCKS)


Scan = tuple[bytes, int, int, int, int]


def _scans(data: bytes) -> Iterator[Scan]:
    """Yield the components, spectral range, and high and low bit of each scan (ITU T.81, B.2.3)."""
    place = data.find(b"\xff\xda")
    while place >= 0:
        count = data[place + 4] if place + 4 < len(data) else 0
        rest = data[place + 5 + 2 * count : place + 8 + 2 * count]
        if len(rest) == 3:
            yield (
                data[place + 5 : place + 5 + 2 * count : 2],
                rest[0],
                rest[1],
                rest[2] >> 4,
                rest[2] & 15,
            )
        place = data.find(b"\xff\xda", place + 2)


def _are_refinements_small(data: bytes) -> bool:
    starts = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    sizes = [
        end - start
        for start, end in itertools.pairwise(starts)
        for _, first, _, high, _ in _scans(data[start : start + 16])
        if first and high
    ]
    return 0 < max(sizes, default=0) <= _MOST_SCAN_BYTES


def _lowest_bit(scans: list[Scan], components: list[int]) -> int:
    """Return the lowest bit that is known of every coefficient of a progressive file.

    It is 0 if all bits of all coefficients are known.
    """
    known = {component: [99] * 64 for component in components}
    for names, first, last, _, low in scans:
        for component in names:
            for k in range(first, min(last, 63) + 1):
                if component in known:
                    known[component][k] = low
    return max(low for lows in known.values() for low in lows)


def _lost_units(data: bytes, width: int, height: int) -> tuple[int, int]:
    """Return the number of lost and of all coding units of *width* x *height* pixels."""
    random = np.random.default_rng(1).integers(0, 255, 16_384, np.uint8).tobytes()
    cut = data.rstrip(b"\xff")
    a, b = (_luma(cut + more + _EOI) for more in (b"", random))
    rows, columns = -(-a.shape[0] // height), -(-a.shape[1] // width)
    differs = np.zeros((rows * height, columns * width), np.bool_)
    differs[: a.shape[0], : a.shape[1]] = a != b
    units = differs.reshape(rows, height, columns, width).any(axis=(1, 3)).ravel()
    first = int(units.argmax()) if units.any() else units.size
    return units.size - first, units.size


def _luma(data: bytes) -> NDArray[np.uint8]:
    """Return the first component (luma) of a JPEG.

    In this component, the pixels of a unit do not depend on the neighbours of the unit. In the
    others they may.
    """
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    image.draft("L", None)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 2 else pixels[..., 0]
