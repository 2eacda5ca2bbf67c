"""Camera raw files are shown by their embedded preview, never by a thumbnail."""

from __future__ import annotations

import struct

import pytest
from PIL import ExifTags, Image

from tests.support.pictures import (
    QUADRANTS,
    corners,
    difference,
    encoded,
    opened,
    quadrants,
    refusal,
)

PREVIEW = encoded(quadrants(640, 480), "JPEG", quality=95)
THUMBNAIL = encoded(quadrants(160, 120).rotate(180), "JPEG")


def directory(order: str, at: int, entries: dict[int, int], following: int = 0) -> bytes:
    """Return a TIFF directory of LONG values at offset *at*."""
    rows = (struct.pack(order + "HHII", tag, 4, 1, v) for tag, v in sorted(entries.items()))
    count, end = struct.pack(order + "H", len(entries)), struct.pack(order + "I", following)
    return count + b"".join(rows) + end


def raw(
    order: str = "<", *, previews: tuple[bytes, ...] = (PREVIEW,), orientation: int = 1,
    magic: bytes = b"", is_sub: bool = True
) -> bytes:  # fmt: skip
    """Return a raw file as NEF, ARW and DNG are made: a thumbnail first, previews elsewhere."""
    start = 1024
    places = []
    for preview in (THUMBNAIL, *previews):
        places.append((start, len(preview)))
        start += len(preview)
    first = {254: 1, 256: 160, 257: 120, 274: orientation, 513: places[0][0], 514: places[0][1]}
    if is_sub:
        first[330] = 256
    else:
        first |= {50706: 1}
    body = directory(order, 8, first, following=0 if is_sub else 256)
    rest = b""
    for number, (place, length) in enumerate(places[1:]):
        more = 256 + 128 * (number + 1) if number + 2 < len(places) else 0
        entries = {259: 6, 273: place, 279: length} if number % 2 else {513: place, 514: length}
        rest += directory(order, 0, entries, following=more).ljust(128, b"\0")
    head = (magic or (b"II*\0" if order == "<" else b"MM\0*")) + struct.pack(order + "I", 8)
    head = (head + body).ljust(256, b"\0") + rest
    return head.ljust(1024, b"\0") + THUMBNAIL + b"".join(previews)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_sub", [True, False], ids=["NEF", "DNG"])
def test_the_preview_of_a_raw_file_is_the_picture(order: str, is_sub: bool) -> None:
    image = opened(raw(order, is_sub=is_sub))

    assert image.size == (640, 480)
    assert image.info == {"original_size": (640, 480)}
    assert difference(corners(image), QUADRANTS) <= 4


def test_the_largest_preview_is_taken() -> None:
    large = encoded(quadrants(1280, 960), "JPEG", quality=95)

    assert opened(raw(previews=(PREVIEW, large))).size == (1280, 960)


def test_a_preview_is_turned_as_its_raw_file_says_unless_it_says_so_itself() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    own = encoded(quadrants(640, 480), "JPEG", quality=95, exif=exif)

    by_file, by_itself = opened(raw(orientation=6)), opened(raw(orientation=6, previews=(own,)))

    assert by_file.size == by_itself.size == (480, 640)
    assert by_file.info == by_itself.info == {"original_size": (480, 640)}
    assert difference(corners(by_file), corners(by_itself)) <= 4


def test_fuji_and_canon_files_have_their_preview_where_they_say() -> None:
    fuji = b"FUJIFILMCCD-RAW 0201".ljust(84, b"\0") + struct.pack(">II", 160, len(PREVIEW))
    fuji = fuji.ljust(160, b"\0") + PREVIEW
    canon = b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(40)
    box = b"PRVW" + struct.pack(">IHHHHI", 0, 1, 640, 480, 1, len(PREVIEW)) + PREVIEW
    canon += struct.pack(">I", len(box) + 4) + box

    for data in (fuji, canon):
        assert difference(corners(opened(data)), QUADRANTS) <= 4


@pytest.mark.parametrize(
    "data",
    [
        raw(previews=()),
        raw(previews=(THUMBNAIL,)),
        raw(previews=(b"\xff\xd8\xff\xc3 the lossless sensor data",)),
        raw()[:300],
        b"II*\0\xff\xff\xff\xffCR\x02\0",
        b"FUJIFILMCCD-RAW " + b"\xff" * 90,
    ],
)
def test_a_raw_file_without_a_preview_is_unsupported(data: bytes) -> None:
    error = refusal(data)

    assert (error.kind, "camera raw" in str(error)) == ("unsupported", True)


def test_a_cut_preview_is_damage() -> None:
    assert refusal(raw()[:-4000]).kind == "truncated"
