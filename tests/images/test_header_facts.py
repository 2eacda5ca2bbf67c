"""Files that Pillow decodes to wrong pixels without an error: each is right, or refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from idefics_cli.core.types import ImageLimits
from tests.support.pictures import (
    BLUE,
    QUADRANTS,
    RED,
    corners,
    difference,
    encoded,
    opened,
    png,
    quadrants,
    refusal,
    tiff,
    with_filter_bytes,
)

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
PICTURE = np.asarray(quadrants())
ALL_CLEAR = np.zeros((48, 64), np.uint8)


# TIFF ----------------------------------------------------------------------------------------


GREY = np.asarray(quadrants().convert("L")).astype(np.uint32)
GREY_PICTURE = quadrants().convert("L").convert("RGB")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("alpha", [False, True])
def test_16_bit_samples_in_planes(order: str, alpha: bool) -> None:
    planes = np.moveaxis(PICTURE, -1, 0).astype(np.uint16) * 257
    count = 4 if alpha else 3
    if alpha:
        planes = np.concatenate([planes, np.full((1, 48, 64), 65535, np.uint16)])
    tags: dict[int, int | tuple[int, ...]] = {258: (16,) * count, 262: 2, 277: count, 284: 2}
    if alpha:
        tags[338] = 2

    image = opened(tiff(planes.astype(order + "u2").tobytes(), tags, order))

    assert difference(image, quadrants()) == 0


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_one_sample_in_planes_is_the_same_as_one_in_pixels(order: str, white_is_zero: bool) -> None:
    bits = np.packbits(np.asarray(quadrants().convert("L")) > 127, axis=-1).tobytes()
    photometric = 0 if white_is_zero else 1
    tags: dict[int, int | tuple[int, ...]] = {258: 1, 262: photometric, 277: 1}

    in_pixels, in_planes = (opened(tiff(bits, tags | {284: planar}, order)) for planar in (1, 2))

    assert difference(in_planes, in_pixels) == 0


def test_a_colour_map_of_8_bits_is_not_black() -> None:
    indexes = np.zeros((48, 64), np.uint8)
    indexes[:24, 32:], indexes[24:, :32], indexes[24:, 32:] = 1, 2, 3
    map_ = [colour[band] for band in range(3) for colour in (*QUADRANTS, *[BLACK] * 252)]

    narrow, wide = (
        opened(tiff(indexes.tobytes(), {258: 8, 262: 3, 320: tuple(v * scale for v in map_)}))
        for scale in (1, 257)
    )

    assert difference(narrow, quadrants()) == 0
    assert difference(wide, quadrants()) == 0


def test_white_is_zero_holds_for_16_bits_and_for_floats() -> None:
    deep = ((255 - GREY) * 257).astype("<u2").tobytes()
    floats = (1 - GREY / 255).astype("<f4").tobytes()

    as_deep = opened(tiff(deep, {258: 16, 262: 0}))
    as_floats = opened(tiff(floats, {258: 32, 262: 0, 339: 3}))

    assert difference(as_deep, GREY_PICTURE) == 0
    assert difference(as_floats, GREY_PICTURE) <= 1


@pytest.mark.parametrize("width", [64, 63])
@pytest.mark.parametrize("pairs", [True, False], ids=["rows of pairs", "rows of bytes"])
def test_12_bits_are_not_nearly_black(width: int, pairs: bool) -> None:
    values = (GREY[:, :width] * 4095 // 255).astype(np.uint32)
    rows = []
    for row in values:
        digits = "".join(f"{value:03x}" for value in row)
        digits += "0" * (len(digits) % 2)
        data = bytes.fromhex(digits)
        rows.append(data.ljust((width + 1) // 2 * 3, b"\0") if pairs else data)

    image = opened(tiff(b"".join(rows), {256: width, 258: 12, 262: 1}))

    assert difference(image, GREY_PICTURE.crop((0, 0, width, 48))) <= 1


def test_unsigned_32_bits_are_not_signed() -> None:
    image = opened(tiff((GREY * 0x01010101).astype("<u4").tobytes(), {258: 32, 262: 1, 339: 1}))

    assert difference(image, GREY_PICTURE) == 0


def test_the_picture_is_taken_and_not_its_thumbnail_or_mask() -> None:
    pages = []
    for kind, page in (
        (1, quadrants(16, 12).rotate(180)),
        (4, Image.new("1", (64, 48))),
        (0, quadrants()),
        (0, quadrants(80, 60).rotate(180)),
    ):
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info.tagtype[254] = 4
        info[254] = kind
        page.encoderinfo = {"tiffinfo": info}
        pages.append(page)
    data = encoded(
        pages[0],
        "TIFF",
        save_all=True,
        append_images=pages[1:],
        tiffinfo=pages[0].encoderinfo["tiffinfo"],
    )

    assert difference(opened(data), quadrants()) == 0
    assert refusal(data, ImageLimits(max_pixels=64 * 48 - 1)).kind == "too_large"


def test_a_tiff_that_is_all_thumbnail_is_its_thumbnail() -> None:
    assert (
        difference(
            opened(tiff(GREY.astype(np.uint8).tobytes(), {258: 8, 262: 1, 254: 1})), GREY_PICTURE
        )
        == 0
    )


@pytest.mark.parametrize(
    "tags",
    [
        {258: (16,) * 4, 262: 5, 277: 4, 284: 2},
        {258: (8,) * 4, 262: 5, 277: 4, 332: 2},
        {258: (8,) * 3, 262: 6, 277: 3, 530: (2, 2)},
        {258: (8,) * 3, 262: 6, 277: 3},
        {258: 8, 262: 1, 339: 2},
        {258: (8, 8), 262: 1, 277: 2, 284: 2, 338: 2},
        {258: (16,) * 2, 262: 1, 277: 2, 338: 2},
        {258: (8,) * 3, 262: 2, 277: 3, 259: 50001},
    ],
    ids=["CMYK planes", "inks", "YCbCr 2x2", "YCbCr", "signed", "LA planes", "LA 16", "WebP"],
)
def test_a_tiff_that_would_come_out_wrong_is_unsupported(
    tags: dict[int, int | tuple[int, ...]],
) -> None:
    error = refusal(tiff(bytes(64 * 48 * 8), tags))

    assert (error.kind, error.hint) == ("unsupported", "convert it to PNG or JPEG first")


# JPEG 2000, Targa, icons -----------------------------------------------------------------------


def jpeg2000_with_depth(bits: int, mode: str = "RGB") -> bytes:
    data = bytearray(encoded(quadrants().convert(mode), "JPEG2000", no_jp2=True))
    at = data.index(b"\xff\x4f\xff\x51") + 42
    for component in range(len(Image.new(mode, (1, 1)).getbands())):
        data[at + 3 * component] = bits - 1
    return bytes(data)


@pytest.mark.parametrize(("bits", "is_refused"), [(8, False), (9, True), (12, True), (16, True)])
def test_jpeg_2000_above_8_bits_is_unsupported(bits: int, is_refused: bool) -> None:
    data = jpeg2000_with_depth(bits)

    if is_refused:
        assert refusal(data).kind == "unsupported"
    else:
        assert difference(opened(data), quadrants()) == 0


def subsampled_jpeg2000(width: int, height: int, *factors: tuple[int, int]) -> bytes:
    """Return a JPEG 2000 file of this size that says that its samples are subsampled."""
    data = bytearray(encoded(quadrants(width, height), "JPEG2000", no_jp2=True))
    start = data.index(b"\xff\x4f\xff\x51")
    for i, factor in enumerate(factors):
        data[start + 43 + 3 * i : start + 45 + 3 * i] = bytes(factor)
    return bytes(data)


@pytest.mark.parametrize(
    ("size", "factors", "is_wrong"),
    [
        ((64, 48), [(1, 1), (2, 2), (2, 2)], False),
        ((64, 48), [(2, 2), (2, 2), (2, 2)], False),
        ((63, 48), [(1, 1), (2, 2), (2, 2)], True),
        ((64, 47), [(1, 1), (2, 2), (2, 2)], True),
        ((64, 47), [(1, 1), (2, 1), (2, 1)], False),
        ((63, 48), [(1, 1), (2, 1), (2, 1)], True),
        ((64, 48), [(2, 2), (1, 1), (1, 1)], True),
    ],
)
def test_jpeg_2000_with_subsampled_colours_of_an_odd_size_is_unsupported(
    size: tuple[int, int], factors: list[tuple[int, int]], is_wrong: bool
) -> None:
    data = subsampled_jpeg2000(*size, *factors)

    if is_wrong:
        assert "subsampled" in str(refusal(data))
    else:
        assert opened(data).size == size


@pytest.mark.parametrize(
    ("order", "is_wrong"),
    [((1, 2, 3), False), ((0, 0, 0), False), ((3, 2, 1), True), ((2, 3, 1), True)],
)
def test_jpeg_2000_with_channels_in_another_order_is_unsupported(
    order: tuple[int, ...], is_wrong: bool
) -> None:
    data = encoded(quadrants(), "JPEG2000")
    rows = b"".join(struct.pack(">HHH", i, 0, colour) for i, colour in enumerate(order))
    box = struct.pack(">I4sH", 10 + len(rows), b"cdef", 3) + rows
    end = data.index(b"jp2c") - 4
    header = data.index(b"jp2h") - 4
    size = int.from_bytes(data[header : header + 4]) + len(box)
    data = data[:header] + size.to_bytes(4) + data[header + 4 : end] + box + data[end:]

    if is_wrong:
        assert "channels in another order" in str(refusal(data))
    else:
        assert difference(opened(data), quadrants()) == 0


@pytest.mark.parametrize("compression", [None, "tga_rle"])
@pytest.mark.parametrize("alpha_bits", [0, 8])
def test_the_alpha_of_a_tga_is_what_its_descriptor_says(
    compression: str | None, alpha_bits: int
) -> None:
    clear = quadrants().convert("RGBA")
    clear.putalpha(0)
    data = bytearray(encoded(clear, "TGA", compression=compression))
    data[17] = data[17] & 0xF0 | alpha_bits

    assert corners(opened(bytes(data))) == ([WHITE] * 4 if alpha_bits else list(QUADRANTS))


def icon(*pictures: tuple[int, int, int, bytes], kind: int = 1) -> bytes:
    """Return an icon (1) or cursor (2) of (width, height, bits, bytes of the bitmap or PNG)."""
    head = struct.pack("<HHH", 0, kind, len(pictures))
    at = 6 + 16 * len(pictures)
    body = b""
    for width, height, bits, data in pictures:
        row = (width % 256, height % 256, 0, 0, 1, bits, len(data), at + len(body))
        head += struct.pack("<BBBBHHII", *row)
        body += data
    return head + body


def bitmap_32(alpha: int, mask: NDArray[np.bool_] | None) -> bytes:
    """Return the quadrants as the 32-bit bitmap of an icon; the mask is set where it is clear."""
    pixels = np.full((48, 64, 4), alpha, np.uint8)
    pixels[..., :3] = PICTURE[..., ::-1]
    header = struct.pack("<IiiHHIIiiII", 40, 64, 96, 1, 32, 0, 0, 0, 0, 0, 0)
    rows = b"" if mask is None else np.packbits(mask[::-1], axis=-1).tobytes()
    return header + pixels[::-1].tobytes() + rows


LEFT = np.zeros((48, 64), np.bool_)
LEFT[:, :32] = True


@pytest.mark.parametrize(
    ("alpha", "mask", "expected"),
    [
        (0, ~LEFT & LEFT, QUADRANTS),
        (0, LEFT, (WHITE, QUADRANTS[1], WHITE, QUADRANTS[3])),
        (255, LEFT, QUADRANTS),
        (255, None, QUADRANTS),
        (0, None, (WHITE,) * 4),
    ],
)
@pytest.mark.parametrize("kind", [1, 2], ids=["icon", "cursor"])
def test_an_icon_without_alpha_has_its_mask(
    alpha: int, mask: NDArray[np.bool_] | None, expected: tuple[object, ...], kind: int
) -> None:
    data = icon((64, 48, 32, bitmap_32(alpha, mask)), kind=kind)

    assert corners(opened(data)) == list(expected)


def test_the_deepest_of_the_largest_pictures_of_an_icon_is_taken() -> None:
    shallow = encoded(quadrants().convert("1"), "PNG")
    small = encoded(quadrants(32, 24).rotate(180), "PNG")
    deep = encoded(quadrants(), "PNG")

    data = icon((32, 24, 32, small), (64, 48, 1, shallow), (64, 48, 32, deep))

    assert difference(opened(data), quadrants()) == 0


def test_an_icon_is_measured_before_it_is_decoded() -> None:
    # The picture has no pixels, so decoding it would be `truncated`.
    data = icon((64, 48, 32, png(20_000, 20_000, b"", depth=8, colour_type=2)))

    assert refusal(data).kind == "too_large"


# GIF and animated PNG ----------------------------------------------------------------------------


def test_the_rest_of_a_gif_around_a_small_first_frame_is_clear() -> None:
    image = Image.new("P", (16, 12), 1)
    image.putpalette(bytes((*RED, *BLUE)))
    data = bytearray(encoded(image, "GIF", background=0))
    data[6:10] = struct.pack("<HH", 64, 48)  # the canvas

    seen = opened(bytes(data))

    assert seen.size == (64, 48)
    assert seen.getpixel((5, 5)) == BLUE
    assert corners(seen)[1:] == [WHITE] * 3


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_that_can_be_seen_is_taken(format: str) -> None:
    clear = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    frames = [clear, quadrants().convert("RGBA"), quadrants().rotate(180).convert("RGBA")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(clear, format, save_all=True, append_images=frames[1:], **options)

    assert difference(corners(opened(data)), QUADRANTS) == 0


def test_a_default_image_that_is_no_frame_is_not_the_picture() -> None:
    hidden, first, second = (Image.new("RGB", (8, 8), c) for c in (BLUE, RED, WHITE))
    data = encoded(hidden, "PNG", save_all=True, default_image=True, append_images=[first, second])

    assert corners(opened(data)) == [RED] * 4


def test_a_still_picture_that_is_all_clear_is_white() -> None:
    rows = with_filter_bytes(np.zeros((4, 16), np.uint8))

    assert corners(opened(png(4, 4, rows, depth=8, colour_type=6))) == [WHITE] * 4


def test_a_later_frame_that_is_damaged_costs_nothing() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    data = encoded(clear, "PNG", save_all=True, append_images=[quadrants(8, 8).convert("RGBA")])
    start = data.index(b"fdAT") + 8
    broken = bytearray(data)
    broken[start : start + 4] = b"\xff\xff\xff\xff"

    assert corners(opened(bytes(broken))) == [WHITE] * 4
