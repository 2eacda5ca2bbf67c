"""Damaged metadata and a cut end never cost a picture."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile, features

from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader, is_turned
from tests.support.pictures import (
    QUADRANTS,
    corners,
    difference,
    encoded,
    noise,
    opened,
    png,
    quadrants,
    refusal,
    with_filter_bytes,
)

PICTURE = encoded(quadrants(), "PNG")
ROWS = with_filter_bytes(np.asarray(quadrants()).reshape(48, -1))
KEEP = ImageLimits(keeps_truncated=True)
BOMB = zlib.compress(bytes(100_000_000), 1)  # 100 MB in half a megabyte


def sized(data: bytes) -> tuple[int, int]:
    """Return the size that the loader finds without opening the picture."""
    return ImageLoader(ImageLimits(), stdin=io.BytesIO(data)).size(Attachment("-"))


# PNG -----------------------------------------------------------------------------------------


def with_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    return png(64, 48, ROWS, depth=8, colour_type=2, extra=chunks)


def with_wrong_crc(name: bytes, body: bytes) -> bytes:
    data = bytearray(with_chunks((name, body)))
    end = data.index(name) + 4 + len(body)
    data[end] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (b"pHYs", bytes(9)),
        (b"tEXt", b"Comment\0text"),
        (b"iCCP", b"a\0\0" + zlib.compress(b"profile")),
        (b"gAMA", bytes(4)),
        (b"tIME", bytes(7)),
        (b"eXIf", b"II*\0\x08\0\0\0\0\0"),
        (b"tRNS", bytes(6)),
        (b"vpAg", b"private"),
    ],
)
def test_a_wrong_crc_of_an_ancillary_chunk_costs_the_chunk(name: bytes, body: bytes) -> None:
    data = with_wrong_crc(name, body)

    assert difference(opened(data), quadrants()) == 0
    assert sized(data) == (64, 48)
    assert not is_turned(data)


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT"])
def test_a_wrong_crc_of_a_critical_chunk_is_damage(name: bytes) -> None:
    data = bytearray(PICTURE)
    data[data.index(name) + 6] ^= 0x01

    assert refusal(bytes(data)).kind == "truncated"


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"Comment\0\0" + BOMB),
        (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(2_000_000), 9)),
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(1_500_000), 9)),
        (b"iCCP", b"profile\0\0" + BOMB),
        (b"tEXt", b"Comment\0" + bytes(70_000_000)),
        (b"tRNS", bytes(5)),
        (b"tRNS", bytes(1)),
        (b"gAMA", b"\0"),
        (b"pHYs", b"\0"),
        (b"cHRM", b"\0"),
        (b"sRGB", b""),
        (b"iCCP", b"no end of the name"),
        (b"eXIf", b"\0"),
    ],
    ids=lambda chunk: f"{chunk[0].decode()}-{len(chunk[1])}",
)
def test_metadata_of_any_size_or_form_costs_no_png(chunk: tuple[bytes, bytes]) -> None:
    data = with_chunks(chunk)

    assert difference(opened(data), quadrants()) == 0
    assert sized(data) == (64, 48)


def test_what_turns_or_clears_a_png_outlives_broken_metadata() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    broken = (b"pHYs", b"\0")
    key = struct.pack(">HHH", *QUADRANTS[0])

    turned = opened(with_chunks(broken, (b"eXIf", exif.tobytes()[6:])))
    clear = opened(with_chunks(broken, (b"tRNS", key)))

    assert turned.size == (48, 64)
    assert is_turned(with_chunks(broken, (b"eXIf", exif.tobytes()[6:])))
    assert corners(clear) == [(255, 255, 255), *QUADRANTS[1:]]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def frame(number: int) -> bytes:
    return chunk(b"fcTL", struct.pack(">5I2H2B", number, 64, 48, 0, 0, 1, 10, 0, 0))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (chunk(b"acTL", struct.pack(">II", 2, 0)) + frame(5), b""),
        (chunk(b"acTL", struct.pack(">II", 2, 0)) + frame(0) + frame(1), b""),
        (chunk(b"acTL", struct.pack(">II", 2, 0)) + frame(0), frame(1)),
        (chunk(b"acTL", struct.pack(">II", 2, 0)) + frame(0), chunk(b"fdAT", bytes(4))),
        (chunk(b"acTL", struct.pack(">II", 0, 0)) + frame(0), b""),
        (chunk(b"acTL", b"\0") + frame(0), b""),
    ],
    ids=["start", "two frames", "no data", "wrong number", "no frames", "short"],
)
def test_a_png_whose_animation_is_broken_shows_its_default_image(
    before: bytes, after: bytes
) -> None:
    start, end = PICTURE.index(b"IDAT") - 4, PICTURE.index(b"IEND") - 4
    data = PICTURE[:start] + before + PICTURE[start:end] + after + PICTURE[end:]

    assert difference(opened(data), quadrants()) == 0


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_png_without_its_end_is_taken(cut: int) -> None:
    assert difference(opened(PICTURE[:-cut]), quadrants()) == 0


def test_a_png_without_its_last_data_is_damage() -> None:
    halves = zlib.compress(ROWS, 0)
    first = chunk(b"IDAT", halves[: len(halves) // 2])
    start = PICTURE.index(b"IDAT") - 4

    assert refusal(PICTURE[:start] + first).kind == "truncated"


# JPEG ----------------------------------------------------------------------------------------


def jpeg_with(marker: int, body: bytes, picture: bytes = b"") -> bytes:
    picture = picture or encoded(quadrants(), "JPEG", quality=95)
    segment = struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
    return picture[:2] + segment + picture[2:]


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xE0, b"JFIF\0"),
        (0xEE, b"Adobe"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\1"),
        (0xE1, b"Exif\0\0"),
        (0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        (0xED, b"Photoshop 3.0\0008BIM\4"),
        (0xE2, b"MPF\0"),
    ],
)
def test_a_broken_segment_costs_no_jpeg(marker: int, body: bytes) -> None:
    data = jpeg_with(marker, body)

    assert difference(corners(opened(data)), QUADRANTS) <= 4
    assert sized(data) == (64, 48)


def test_what_turns_a_jpeg_outlives_broken_metadata() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = jpeg_with(0xE0, b"JFIF\0", encoded(quadrants(), "JPEG", quality=95, exif=exif))

    assert opened(data).size == sized(data) == (48, 64)
    assert is_turned(data)


def test_an_inverted_cmyk_jpeg_stays_right_without_its_broken_segments() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")

    assert difference(corners(opened(jpeg_with(0xE0, b"JFIF\0", data))), [(255, 0, 0)] * 4) <= 4


JPEGS = {
    "photo": encoded(noise(640, 480).resize((320, 240)), "JPEG"),
    "flat": encoded(Image.new("RGB", (320, 240), QUADRANTS[0]), "JPEG", optimize=True),
    "flat-bottom": encoded(quadrants(320, 240), "JPEG", optimize=True),
    "small": encoded(noise(), "JPEG"),
    "4:4:4": encoded(noise(160, 120), "JPEG", subsampling=0),
    "grey": encoded(noise(160, 120).convert("L"), "JPEG"),
    "cmyk": encoded(noise(160, 120).convert("CMYK"), "JPEG"),
    "progressive": encoded(noise(160, 120), "JPEG", progressive=True),
    "progressive-small": encoded(noise(), "JPEG", progressive=True),
    "restart": encoded(noise(160, 120), "JPEG", restart_marker_rows=1),
}


@pytest.mark.parametrize("cut", [1, 2, 3, 8, 16, 32])
@pytest.mark.parametrize("name", JPEGS)
def test_up_to_32_missing_bytes_cost_no_jpeg(name: str, cut: int) -> None:
    whole, kept = opened(JPEGS[name]), opened(JPEGS[name][:-cut])

    assert kept.size == whole.size
    off = np.abs(np.asarray(whole, np.int64) - np.asarray(kept, np.int64)).mean()
    assert off <= (7 if name in ("flat", "flat-bottom") or "small" in name else 1.5)


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("name", [name for name in JPEGS if not name.startswith("flat")])
def test_a_jpeg_that_is_cut_more_is_refused_unless_it_is_to_be_kept(
    name: str, share: float
) -> None:
    data = JPEGS[name][: int(len(JPEGS[name]) * share)]

    assert refusal(data).kind == "truncated"
    assert opened(data, KEEP).size == opened(JPEGS[name]).size


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF", "TGA", "PCX", "SGI"])
def test_other_cut_pictures_are_kept_only_if_that_is_asked_for(format: str) -> None:
    data = encoded(quadrants(256, 256).effect_spread(9), format)
    data = data[: len(data) * 3 // 4] if format != "TIFF" else data[:-9000]

    assert refusal(data).kind == "truncated"
    if format != "TIFF":  # the directory of Pillow's TIFF files is at the end
        assert opened(data, KEEP).size == (256, 256)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_picture_of_which_nothing_is_left_is_refused_even_so() -> None:
    for data in (JPEGS["photo"][:100], PICTURE[:20], b"\xff\xd8\xff", JPEGS["photo"][:2] * 9):
        with pytest.raises(Exception, match="stdin"):
            opened(data, KEEP)


# AVIF ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_broken_exif_item_costs_no_avif() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    data = bytearray(encoded(quadrants(), "AVIF", quality=95, exif=exif))
    place = data.index(exif.tobytes()[6:])
    data[place : place + 8] = b"no TIFF."

    assert difference(corners(opened(bytes(data))), QUADRANTS) <= 6


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_the_alpha_of_an_avif_needs_no_size_of_its_own() -> None:
    clear = quadrants().convert("RGBA")
    clear.putalpha(Image.new("L", (64, 48), 255))
    clear.paste((0, 0, 0, 0), (0, 0, 32, 24))
    data = bytearray(encoded(clear, "AVIF", quality=95))
    # The associations of item 2, the alpha channel: its size comes first. Old encoders of cavif
    # left it out; the table keeps its length here, with a free byte after it.
    place = data.index(b"\0\2\4\1", data.index(b"ipma"))
    data[place : place + 7] = data[place : place + 2] + b"\3" + data[place + 4 : place + 7] + b"\0"

    image = opened(bytes(data))

    expected = [(255, 255, 255), *QUADRANTS[1:]]
    assert difference(corners(image), expected) <= 6


def with_a_table_for_each_item(data: bytes) -> bytes:
    """Return an AVIF of two items with two `ipma` boxes, as old versions of cavif wrote it."""
    place = data.index(b"ipma") - 4
    size = int.from_bytes(data[place : place + 4])
    rows = data[place + 16 : place + size]
    first = 3 + rows[2]  # number of the item, count, and one byte a property
    tables = [
        struct.pack(">I4sII", 16 + len(row), b"ipma", 0, 1) + row
        for row in (rows[:first], rows[first:])
    ]
    changed = bytearray(data)
    growth = sum(map(len, tables)) - size
    for name in (b"meta", b"iprp"):
        start = data.index(name) - 4
        length = int.from_bytes(data[start : start + 4]) + growth
        changed[start : start + 4] = length.to_bytes(4)
    locations = data.index(b"iloc") + 12
    for entry in (locations, locations + 14):  # number, reference, count of parts, offset, length
        offset = int.from_bytes(data[entry + 6 : entry + 10]) + growth
        changed[entry + 6 : entry + 10] = offset.to_bytes(4)
    changed[place : place + size] = b"".join(tables)
    return bytes(changed)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_with_a_table_of_properties_for_each_item_is_read() -> None:
    clear = quadrants().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 32, 24))
    data = with_a_table_for_each_item(encoded(clear, "AVIF", quality=95))
    with pytest.raises(Exception, match="cannot identify"):
        Image.open(io.BytesIO(data))

    image = opened(data)

    assert difference(corners(image), [(255, 255, 255), *QUADRANTS[1:]]) <= 6


# Profiles ------------------------------------------------------------------------------------


def test_a_profile_that_is_broken_or_of_another_kind_is_ignored() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"no profile", bytes(200), lab):
        for format in ("PNG", "JPEG", "TIFF", "WEBP"):
            data = encoded(quadrants(), format, icc_profile=profile)
            assert difference(corners(opened(data)), QUADRANTS) <= 10
