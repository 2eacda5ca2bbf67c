"""The reader of previews in camera raw files: JPEGs of the developed picture."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from PIL import JpegImagePlugin

from idefics_cli.images.facts import CameraRaw

_SUBFILE_TYPE, _STRIPS, _ORIENTATION, _STRIP_BYTES = 254, 273, 274, 279
_SUB_IFDS, _DNG_VERSION = 330, 50706
_JPEG_START, _JPEG_BYTES = 0x201, 0x202  # JPEGInterchangeFormat (TIFF 6.0, section 22)
_PANASONIC_PREVIEW = 0x2E
_MOST_DIRECTORIES, _MOST_ENTRIES = 32, 512
_MOST_PREVIEW_BYTES = 64 << 20
_HEAD_BYTES = 8 << 20
_LEAST_EDGE = 500  # a smaller preview is a thumbnail, which hardly shows the photo
_WIDTHS = {1: 1, 3: 2, 4: 4, 7: 1, 13: 4}  # bytes of a value by its type

Entry = tuple[int, int, bytes]


@dataclass(frozen=True, slots=True)
class Preview:
    """The preview of a raw file.

    Attributes:
        data: A JPEG file.
        orientation: EXIF orientation in the raw file; 1 if the preview itself states one.
    """

    data: bytes
    orientation: int


def read_preview(stream: BinaryIO) -> Preview:
    """Return the largest preview of a camera raw file.

    Raises:
        CameraRaw: If the file has no preview of sufficient size.
    """
    stream.seek(0)
    head = stream.read(_HEAD_BYTES)
    orientation = 1
    if head.startswith(b"FUJIFILMCCD-RAW"):
        places = [struct.unpack_from(">II", head, 84)] if len(head) >= 92 else []
    elif head[4:12] == b"ftypcrx ":
        places = _canon_places(head)
        start = head.find(b"CMT1") + 4
        orientation = _orientation(io.BytesIO(head[start:])) if start >= 4 else 1
    else:
        places = list(_tiff_places(stream))
        orientation = _orientation(stream)
    best, most = b"", _LEAST_EDGE
    own = 1
    for start, length in places:
        stream.seek(start)
        data = stream.read(min(length, _MOST_PREVIEW_BYTES))
        edge, turn = _measure(data)
        if edge >= most:
            best, most, own = data, edge, turn
    if not best:
        raise CameraRaw
    return Preview(best, orientation if own == 1 else 1)


def is_camera_raw(stream: BinaryIO) -> bool:
    """Return whether a TIFF file is a DNG, NEF or ARW, whose first picture is only a thumbnail."""
    for order, entries in _directories(stream):
        is_reduced = _values(entries.get(_SUBFILE_TYPE), order) == [1]
        return _DNG_VERSION in entries or (is_reduced and _SUB_IFDS in entries)
    return False


def _measure(data: bytes) -> tuple[int, int]:
    """Return the longest edge and the orientation of a JPEG; 0 if Pillow cannot decode it."""
    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        return max(image.size), int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the sensor data of a DNG is a JPEG of another kind
        return 0, 1


def _canon_places(head: bytes) -> list[tuple[int, int]]:
    name = head.find(b"PRVW")
    start = head.find(b"\xff\xd8\xff", name, name + 64) if name >= 0 else -1
    return [(start, int.from_bytes(head[start - 4 : start]))] if start >= 4 else []


def _tiff_places(stream: BinaryIO) -> Iterator[tuple[int, int]]:
    for order, entries in _directories(stream):
        for first, second in ((_JPEG_START, _JPEG_BYTES), (_STRIPS, _STRIP_BYTES)):
            starts, lengths = (_values(entries.get(tag), order) for tag in (first, second))
            if len(starts) == len(lengths) == 1:
                yield starts[0], lengths[0]
        if _PANASONIC_PREVIEW in entries:
            _, count, value = entries[_PANASONIC_PREVIEW]
            yield struct.unpack(order + "I", value)[0], count


def _orientation(stream: BinaryIO) -> int:
    for order, entries in _directories(stream):
        if values := _values(entries.get(_ORIENTATION), order):
            return values[0]
    return 1


def _directories(stream: BinaryIO) -> Iterator[tuple[str, dict[int, Entry]]]:
    """Yield the byte order and the entries of each directory of a TIFF file, the first one first.

    Values that do not fit into their entry are not read, except lists of directories.
    """
    stream.seek(0)
    head = stream.read(8)
    if len(head) < 8:
        return
    order = "<" if head.startswith(b"II") else ">"
    waiting = [struct.unpack(order + "I", head[4:])[0]]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_DIRECTORIES:
        place = waiting.pop(0)
        if not place or place in seen:
            continue
        seen.add(place)
        stream.seek(place)
        count = int.from_bytes(stream.read(2), "little" if order == "<" else "big")
        table = stream.read(12 * min(count, _MOST_ENTRIES) + 4)
        entries: dict[int, Entry] = {}
        for i in range(0, len(table) - 15, 12):
            tag, kind, number = struct.unpack_from(order + "HHI", table, i)
            entries[tag] = kind, number, table[i + 8 : i + 12]
        yield order, entries
        if len(table) >= 4:
            waiting.append(struct.unpack(order + "I", table[-4:])[0])
        waiting += _sub_directories(stream, entries.get(_SUB_IFDS), order)


def _sub_directories(stream: BinaryIO, entry: Entry | None, order: str) -> list[int]:
    if entry is None or entry[1] <= 1:
        return _values(entry, order)
    stream.seek(struct.unpack(order + "I", entry[2])[0])
    data = stream.read(4 * min(entry[1], _MOST_DIRECTORIES))
    return list(struct.unpack(f"{order}{len(data) // 4}I", data[: len(data) // 4 * 4]))


def _values(entry: Entry | None, order: str) -> list[int]:
    """Return the numbers of an entry; none if they do not fit into the entry itself."""
    if entry is None:
        return []
    kind, count, value = entry
    width = _WIDTHS.get(kind, 8)
    if count * width > 4:
        return []
    letter = {1: "B", 2: "H", 4: "I"}[width]
    return list(struct.unpack(f"{order}{count}{letter}", value[: count * width]))
