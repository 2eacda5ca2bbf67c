"""Repair of AVIF files that libavif refuses because of their metadata.

The format is defined in ISO/IEC 14496-12 and 23008-12.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Box:
    """A box of the file: its type, its begin, the begin of its content, and its end."""

    kind: bytes
    start: int
    content: int
    end: int


def without_exif(data: bytes) -> bytes:
    """Return *data* with the type of EXIF items replaced by one for which no decoder looks."""
    start = data.find(b"iinf")
    if start < 0:
        return data
    end = start + int.from_bytes(data[start - 4 : start])
    return data[:start] + data[start:end].replace(b"Exif", b"skip") + data[end:]


def with_item_sizes(data: bytes) -> bytes:
    """Return *data* with a size for each item that has none, such as the alpha of old encoders.

    The file already has the size of the picture as a property (`ispe`). An item without a size is
    associated with this property. So the table of associations and all boxes around it grow, and
    all data after them moves.
    """
    meta = _find(data, b"meta", 0, len(data))
    if meta is None:
        return data
    inner = {box.kind: box for box in _boxes(data, meta.content + 4, meta.end)}
    if b"iprp" not in inner or b"iloc" not in inner:
        return data
    properties = {box.kind: box for box in _boxes(data, inner[b"iprp"].content, inner[b"iprp"].end)}
    if b"ipco" not in properties or b"ipma" not in properties:
        return data
    kinds = [box.kind for box in _boxes(data, properties[b"ipco"].content, properties[b"ipco"].end)]
    if b"ispe" not in kinds:
        return data
    table = properties[b"ipma"]
    content = _associations(data[table.content : table.end], kinds)
    growth = len(content) - (table.end - table.content)
    changed = bytearray(data)
    for box in (meta, inner[b"iprp"], table):
        size = box.end - box.start + growth
        changed[box.start : box.start + 4] = size.to_bytes(4)
    _move_data(changed, inner[b"iloc"], growth)
    changed[table.content : table.end] = content
    return bytes(changed)


def _boxes(data: bytes, place: int, end: int) -> Iterator[_Box]:
    while place + 8 <= end:
        size = int.from_bytes(data[place : place + 4])
        if size < 8:  # the box reaches to the end of the file, or has a size of 64 bits: media data
            return
        yield _Box(data[place + 4 : place + 8], place, place + 8, min(place + size, end))
        place += size


def _find(data: bytes, kind: bytes, start: int, end: int) -> _Box | None:
    return next((box for box in _boxes(data, start, end) if box.kind == kind), None)


def _associations(table: bytes, kinds: list[bytes]) -> bytes:
    """Return the content of `ipma` with a size for each item."""
    id_bytes = 4 if table[0] else 2
    width = 2 if table[3] & 1 else 1
    size_index = kinds.index(b"ispe") + 1
    result, place = [table[:8]], 8
    for _ in range(int.from_bytes(table[4:8])):
        count = table[place + id_bytes]
        start = place + id_bytes + 1
        end = start + count * width
        indexes = [
            int.from_bytes(table[i : i + width]) & (2 ** (8 * width - 1) - 1)
            for i in range(start, end, width)
        ]
        own = table[start:end]
        if not any(0 < i <= len(kinds) and kinds[i - 1] == b"ispe" for i in indexes):
            own = size_index.to_bytes(width) + own
            count += 1
        result.append(table[place : place + id_bytes] + bytes([count]) + own)
        place = end
    return b"".join(result)


def _move_data(data: bytearray, box: _Box, growth: int) -> None:
    """Add *growth* to all places of item data in `iloc` that lie in the file."""
    version = data[box.content]
    sizes = data[box.content + 4 : box.content + 6]
    offset_bytes, length_bytes, base_bytes = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
    index_bytes = sizes[1] & 15 if version else 0
    id_bytes = 4 if version == 2 else 2
    place = box.content + 6 + id_bytes
    for _ in range(int.from_bytes(data[box.content + 6 : place])):
        place += id_bytes
        method = data[place + 1] & 15 if version else 0
        place += 4 if version else 2
        base = int.from_bytes(data[place : place + base_bytes])
        if method == 0 and base:
            data[place : place + base_bytes] = (base + growth).to_bytes(base_bytes)
        place += base_bytes
        count = int.from_bytes(data[place : place + 2])
        place += 2
        for _ in range(count):
            place += index_bytes
            if method == 0 and not base:
                offset = int.from_bytes(data[place : place + offset_bytes])
                data[place : place + offset_bytes] = (offset + growth).to_bytes(offset_bytes)
            place += offset_bytes + length_bytes
