"""Repair of AVIF files that libavif refuses because of their metadata.

The format is defined in ISO/IEC 14496-12 and 23008-12.
"""

from __future__ import annotations

import struct
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


def with_sound_properties(data: bytes) -> bytes:
    """Return *data* with one table of the properties of items, and with a size for each item.

    Old encoders wrote a table for each item, and no size for the alpha channel. The file already
    has the size of the picture as a property (`ispe`). An item without a size is associated with
    this property. So the table of associations and all boxes around it change their lengths, and
    all data after them moves.
    """
    meta = _find(data, b"meta", 0, len(data))
    if meta is None:
        return data
    inner = {box.kind: box for box in _boxes(data, meta.content + 4, meta.end)}
    if b"iprp" not in inner or b"iloc" not in inner:
        return data
    properties = list(_boxes(data, inner[b"iprp"].content, inner[b"iprp"].end))
    stores = [box for box in properties if box.kind == b"ipco"]
    tables = [box for box in properties if box.kind == b"ipma"]
    kinds = [box.kind for store in stores for box in _boxes(data, store.content, store.end)]
    if not tables or b"ispe" not in kinds:
        return data
    content = _associations([data[table.content : table.end] for table in tables], kinds)
    table = (8 + len(content)).to_bytes(4) + b"ipma" + content
    growth = len(table) - sum(box.end - box.start for box in tables)
    changed = bytearray(data)
    for box in (meta, inner[b"iprp"]):
        size = box.end - box.start + growth
        changed[box.start : box.start + 4] = size.to_bytes(4)
    _move_data(changed, inner[b"iloc"], growth)
    for box in reversed(tables[1:]):
        del changed[box.start : box.end]
    changed[tables[0].start : tables[0].end] = table
    return bytes(changed)


def _boxes(data: bytes, place: int, end: int) -> Iterator[_Box]:
    while place + 8 <= end:
        size = int.from_bytes(data[place : place + 4])
        if size < 8:  # media data, which reach to the end of the file or have a 64-bit size
            return
        yield _Box(data[place + 4 : place + 8], place, place + 8, min(place + size, end))
        place += size


def _find(data: bytes, kind: bytes, start: int, end: int) -> _Box | None:
    return next((box for box in _boxes(data, start, end) if box.kind == kind), None)


def _associations(tables: list[bytes], kinds: list[bytes]) -> bytes:
    """Return the content of one `ipma` for all *tables*, with a size for each item."""
    indexes: dict[int, list[int]] = {}
    for table in tables:
        id_bytes = 4 if table[0] else 2
        width = 2 if table[3] & 1 else 1
        place = 8
        for _ in range(int.from_bytes(table[4:8])):
            item = int.from_bytes(table[place : place + id_bytes])
            start = place + id_bytes + 1
            place = start + table[start - 1] * width
            for i in range(start, place, width):
                index = int.from_bytes(table[i : i + width])
                is_essential = index >> (8 * width - 1)
                index &= (1 << (8 * width - 1)) - 1
                indexes.setdefault(item, []).append(is_essential << 15 | index)
    size_index = kinds.index(b"ispe") + 1
    rows = []
    for item, own in sorted(indexes.items()):
        if not any(
            0 < i & 0x7FFF <= len(kinds) and kinds[(i & 0x7FFF) - 1] == b"ispe" for i in own
        ):
            own.insert(0, size_index)
        rows.append(struct.pack(f">IB{len(own)}H", item, len(own), *own))
    # The box has version 1 and flag 1: the number of an item has 4 bytes, and that of a property 2.
    return struct.pack(">BxxBI", 1, 1, len(rows)) + b"".join(rows)


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
