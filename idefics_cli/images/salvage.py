"""Copies of damaged files, without the metadata that may be broken.

Pillow refuses a file because of one broken segment of metadata, which browsers ignore. So such a
file is decoded a second time without its metadata. Undamaged files are not touched.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from idefics_cli.images.avif import with_sound_properties, without_exif

_MOST_PROFILE_BYTES = 16 << 20
_MOST_TEXT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Salvaged:
    """A copy of a damaged file.

    Attributes:
        data: The bytes of the copy.
        icc_profile: A colour profile that is too large for Pillow; None if there is none.
    """

    data: bytes
    icc_profile: bytes | None = None


def without_broken_metadata(plugin: str, data: bytes) -> Salvaged | None:
    """Return a copy of a file without metadata that may be broken; None if nothing would change."""
    salvage = _SALVAGES.get(plugin)
    try:
        salvaged = salvage(data) if salvage else None
    except (struct.error, IndexError, OverflowError, zlib.error):
        return None
    return salvaged if salvaged and salvaged.data != data else None


# PNG -------------------------------------------------------------------------------------------

_PNG_START = 8
# Lengths of the chunk `tRNS` of grey pictures (kind 0) and RGB pictures (kind 2). In a picture with
# a palette, the chunk has at most one byte for each colour.
_KEY_BYTES = {0: 2, 2: 6}
_KEPT_CHUNKS = {b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"sRGB", b"cICP"}
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
_END = b"\0\0\0\0IEND\xaeB`\x82"
_LENGTHS = {b"gAMA": 4, b"sRGB": 1, b"cICP": 4}


def _png(data: bytes) -> Salvaged:
    kept, profile, colours, kind = [data[:_PNG_START]], None, 0, data[25]
    is_animated = _is_sound_animation(data)
    for name, body, is_whole, chunk in _chunks(data):
        if name == b"IEND" or (name in _ANIMATION and not is_animated):
            continue
        is_critical = not name[0] & 0x20
        if name == b"PLTE":
            colours = len(body) // 3
        if name == b"tRNS":
            bounds = (_KEY_BYTES[kind],) * 2 if kind in _KEY_BYTES else (1, colours)
            is_whole = is_whole and bounds[0] <= len(body) <= bounds[1]
        elif name == b"iCCP" and is_whole:
            body = _unpacked(body.partition(b"\0")[2][1:], _MOST_PROFILE_BYTES) or b""
            is_whole = 0 < len(body) <= _MOST_TEXT_BYTES
            profile = None if is_whole else body or None
        is_known = name in _KEPT_CHUNKS and len(body) == _LENGTHS.get(name, len(body))
        if is_critical or (is_whole and (is_known or _is_orientation(name, body))):
            kept.append(chunk)
    # If the last chunk is cut, no end chunk is added: a decoder would read it as data of the cut
    # chunk.
    is_cut = bool(kept) and len(kept[-1]) < 12 + int.from_bytes(kept[-1][:4])
    return Salvaged(b"".join(kept) + (b"" if is_cut else _END), profile)


def _is_sound_animation(data: bytes) -> bool:
    """Return whether a decoder of animations takes the frames; others show the default image."""
    numbers, frames, waits_for_data, declared = [], 0, False, 0
    for name, body, is_whole, _ in _chunks(data):
        if name == b"acTL" and len(body) == 8:
            (declared,) = struct.unpack_from(">I", body)
        elif name in (b"fcTL", b"fdAT"):
            numbers.append(int.from_bytes(body[:4]))
            if not is_whole or (name == b"fcTL" and waits_for_data):
                return False
            frames += name == b"fcTL"
        if name in (b"fcTL", b"fdAT", b"IDAT"):
            waits_for_data = name == b"fcTL"
    is_counted = 0 < declared <= frames and numbers == list(range(len(numbers)))
    return is_counted and not waits_for_data


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool, bytes]]:
    """Yield the name and body of each chunk, whether its CRC is right, and all of its bytes."""
    place = _PNG_START
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        name = data[place + 4 : place + 8]
        end = place + 12 + length
        body = data[place + 8 : end - 4]
        is_whole = end <= len(data) and zlib.crc32(name + body) == int.from_bytes(
            data[end - 4 : end]
        )
        yield name, body, is_whole, data[place:end]
        place = end


def _is_orientation(name: bytes, body: bytes) -> bool:
    """Return whether a text chunk contains EXIF data in the form that ImageMagick writes."""
    if name not in (b"tEXt", b"zTXt") or not body.startswith(b"Raw profile type "):
        return False
    text = body.partition(b"\0")[2]
    return name == b"tEXt" or _unpacked(text[1:], _MOST_TEXT_BYTES) is not None


def _unpacked(data: bytes, most: int) -> bytes | None:
    """Return *data* unpacked; None if it is damaged, or has more than *most* bytes unpacked."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, most)
    except zlib.error:
        return None
    return unpacked if unpacker.eof else None


# JPEG ------------------------------------------------------------------------------------------

_SOS, _EOI = 0xDA, b"\xff\xd9"


def _jpeg(data: bytes) -> Salvaged:
    kept = [data[:2]]
    for marker, body, place, end in jpeg_segments(data):
        if marker == _SOS:
            kept.append(data[place:])
            break
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or _is_used(marker, body):
            kept.append(data[place:end])
    return Salvaged(b"".join(kept))


def _is_used(marker: int, body: bytes) -> bool:
    """Return whether a segment of metadata changes how the picture looks, and is complete."""
    if marker == 0xE1:
        return body.startswith(b"Exif\0\0")
    if marker == 0xE2:
        return body.startswith(b"ICC_PROFILE\0") and len(body) > 14
    return marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12


def jpeg_segments(data: bytes, start: int = 2) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield marker, body, begin and end of each segment, up to and including the first scan."""
    place = start
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return
        marker = data[place + 1]
        if marker == 0xFF:  # fill bytes
            place += 1
            continue
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        yield marker, data[place + 4 : end], place, end
        if marker == _SOS:
            return
        place = end


def _avif(data: bytes) -> Salvaged:
    return Salvaged(with_sound_properties(without_exif(data)))


_SALVAGES: dict[str, Callable[[bytes], Salvaged]] = {"PNG": _png, "JPEG": _jpeg, "AVIF": _avif}
