"""Layouts of pixels that Pillow misreads without an error: each is right, or refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import (
    QUADRANTS,
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

WHITE = (255, 255, 255)
GREY = np.asarray(quadrants().convert("L"))
GREY_PICTURE = quadrants().convert("L").convert("RGB")

# TIFF ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tags"),
    [
        ("f4", {258: 32, 262: 1, 339: 3}),
        ("f4", {258: 32, 262: 0, 339: 3}),
        ("i2", {258: 16, 262: 1, 339: 2}),
        ("i4", {258: 32, 262: 1, 339: 2}),
    ],
    ids=["float", "white is zero", "signed 16", "signed 32"],
)
def test_samples_of_either_order_of_bytes(
    dtype: str, tags: dict[int, int], is_compressed: bool, order: str
) -> None:
    shares = GREY / 255 if tags[262] else 1 - GREY / 255
    values = shares * {"f4": 1, "i2": 32767, "i4": 65535}[dtype]
    data = values.astype(order + dtype).tobytes()

    if is_compressed:
        image = opened(tiff(zlib.compress(data), {259: 8, **tags}, order))
    else:
        image = opened(tiff(data, dict(tags), order))

    assert difference(image, opened(tiff(values.astype("<" + dtype).tobytes(), dict(tags)))) == 0
    assert difference(image, GREY_PICTURE) <= 1 or dtype == "i2"


def test_a_strip_that_was_never_written_is_not_the_header_of_the_file() -> None:
    planes = np.moveaxis(np.asarray(quadrants()), -1, 0).tobytes()
    data = tiff(planes, {258: (8,) * 3, 262: 2, 277: 3, 284: 2})
    step = 64 * 48
    assert difference(opened(data), quadrants()) == 0

    error = refusal(
        data.replace(struct.pack("<3I", 8, 8 + step, 8 + 2 * step), struct.pack("<3I", 8, 0, 8))
    )

    assert (error.kind, "a part has no data" in str(error)) == ("truncated", True)


@pytest.mark.parametrize(("black", "white"), [(0, 255), (16, 235)])
def test_plain_samples_of_video_range_are_unsupported(black: int, white: int) -> None:
    colours = np.asarray(quadrants().convert("YCbCr")).tobytes()
    tags: dict[int, int | tuple[int, ...]] = {258: (8,) * 3, 262: 6, 277: 3, 530: (1, 1)}
    data = tiff(colours, {**tags, 532: (black, white, 128, 255, 128, 255)})

    if black:
        assert "video range" in str(refusal(data))
    elif Image.open(io.BytesIO(data)).mode != "YCbCr":  # as in Pillow 12
        assert refusal(data).kind == "unsupported"
    else:
        assert difference(opened(data), quadrants()) <= 3


# PNG, BMP --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "key"), [(2, 0), (2, 1), (4, 1), (4, 5), (4, 14)])
@pytest.mark.parametrize("more", [0, 0x100])
def test_the_colour_key_of_a_grey_png_has_the_depth_of_its_samples(
    depth: int, key: int, more: int
) -> None:
    levels = 1 << depth
    values = np.arange(64 * 48).reshape(48, 64) % levels
    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = with_filter_bytes(np.packbits(bits.reshape(48, -1), axis=-1))

    chunk = (b"tRNS", struct.pack(">H", key + more))

    image = opened(png(64, 48, rows, depth=depth, colour_type=0, extra=[chunk]))

    shown = np.where(values == key, 255, values * 255 // (levels - 1)).astype(np.uint8)
    assert difference(image, Image.fromarray(shown).convert("RGB")) == 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("blend", [0, 1], ids=["source", "over"])
def test_a_frame_does_not_lie_on_a_default_image_that_is_hidden(mode: str, blend: int) -> None:
    hidden, shown = Image.new("RGB", (64, 48), "red").convert(mode), quadrants(32, 24).convert(mode)
    if mode == "RGBA":
        shown.putpixel((0, 0), (0, 0, 0, 0))
    samples = with_filter_bytes(np.asarray(shown).reshape(24, -1))
    control = struct.pack(">IIIIIHHBB", 0, 32, 24, 8, 4, 1, 10, 0, blend)
    data = png(
        64,
        48,
        with_filter_bytes(np.asarray(hidden).reshape(48, -1)),
        depth=8,
        colour_type={"L": 0, "RGB": 2, "RGBA": 6}[mode],
        extra=[(b"acTL", struct.pack(">II", 1, 0))],
        more=[(b"fcTL", control), (b"fdAT", bytes([0, 0, 0, 1]) + zlib.compress(samples))],
    )

    expected = Image.new("RGB", (64, 48), "white")
    expected.paste(shown.convert("RGB"), (8, 4))
    if mode == "RGBA":
        expected.putpixel((8, 4), WHITE)
    assert difference(opened(data), expected) == 0


def test_the_colour_key_of_a_16_bit_png_may_be_dark() -> None:
    samples = np.zeros((1, 3, 3), ">u2")
    samples[0, 1], samples[0, 2] = (0, 0, 5), (0, 0, 0x0500)
    rows = with_filter_bytes(samples.reshape(1, -1).view(np.uint8))
    key = struct.pack(">HHH", 0, 0, 5)

    image = opened(png(3, 1, rows, depth=16, colour_type=2, extra=[(b"tRNS", key)]))

    assert [image.getpixel((x, 0)) for x in (1, 2)] == [WHITE, (0, 0, 5)]


@pytest.mark.parametrize("alpha", [0, 255, 51])
def test_an_alpha_that_a_bmp_names_but_does_not_set_is_none(alpha: int) -> None:
    pixels = np.dstack([np.asarray(quadrants())[::-1, :, ::-1], np.full((48, 64), alpha, np.uint8)])
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 124, 64, 48, 1, 32, 3, 0, 0, 0, 0, 0) + masks
    start = b"BM" + struct.pack("<IHHI", 138 + pixels.size, 0, 0, 138)

    image = opened(start + header.ljust(124, b"\0") + pixels.tobytes())

    share = (alpha or 255) / 255
    expected = [
        tuple(round(value * share + 255 * (1 - share)) for value in colour) for colour in QUADRANTS
    ]
    assert np.abs(np.subtract(corners(image), expected)).max() <= 1


@pytest.mark.parametrize("bits", [8, 24, 32])
@pytest.mark.parametrize("mask_bytes", [0, 7, 48 * 8])
def test_an_icon_without_its_mask_is_opaque(bits: int, mask_bytes: int) -> None:
    colours = b""
    if bits == 8:
        pixels = np.arange(4, dtype=np.uint8).reshape(2, 2).repeat(24, 0).repeat(32, 1)[::-1]
        colours = b"".join(bytes([*colour[::-1], 0]) for colour in QUADRANTS).ljust(1024, b"\0")
    else:
        pixels = np.asarray(quadrants())[::-1, :, ::-1]
        if bits == 32:
            pixels = np.dstack([pixels, np.full((48, 64), 255, np.uint8)])
    header = struct.pack("<IiiHHIIiiII", 40, 64, 96, 1, bits, 0, 0, 0, 0, 0, 0)
    picture = header + colours + pixels.tobytes() + bytes(mask_bytes)
    entry = struct.pack("<BBBBHHII", 64, 48, 0, 0, 1, bits, len(picture), 22)

    image = opened(b"\0\0\1\0\1\0" + entry + picture)

    assert difference(image, quadrants()) == 0


# JPEG 2000 -------------------------------------------------------------------------------------


def shallow_jpeg2000(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]], bits: int) -> bytes:
    """Return a JPEG 2000 file of grey *values* of fewer than 8 *bits*, lossless."""
    # Decoders add half of the range of a sample, so 8-bit samples move by the difference.
    moved = (values - (1 << (bits - 1)) + 128).astype(np.uint8)
    data = bytearray(encoded(Image.fromarray(moved), "JPEG2000", irreversible=False))
    data[data.index(b"\xff\x51") + 40] = bits - 1
    data[data.index(b"ihdr") + 14] = bits - 1
    return bytes(data)


@pytest.mark.parametrize(("bits", "is_refused"), [(1, True), (2, True), (4, True), (6, False)])
def test_a_jpeg_2000_of_few_bits_is_not_darker(bits: int, is_refused: bool) -> None:
    values = GREY.astype(np.int64) >> (8 - bits)
    data = shallow_jpeg2000(values, bits)

    if is_refused:
        assert f"with {bits} bits a sample" in str(refusal(data))
    else:
        assert difference(opened(data), GREY_PICTURE) <= 3


def with_boxes(data: bytes, boxes: bytes) -> bytes:
    """Return a JPEG 2000 file with more *boxes* in its header."""
    header, end = data.index(b"jp2h") - 4, data.index(b"jp2c") - 4
    size = int.from_bytes(data[header : header + 4]) + len(boxes)
    return data[:header] + size.to_bytes(4) + data[header + 4 : end] + boxes + data[end:]


@pytest.mark.parametrize(
    ("bits", "order", "repeats", "is_refused"),
    [
        (8, (0, 1, 2), False, False),
        (8, (2, 1, 0), False, True),
        (8, (0, 1, 2), True, True),
        (4, (0, 1, 2), False, True),
    ],
    ids=["plain", "columns in another order", "repeated colours", "few bits"],
)
def test_a_palette_of_jpeg_2000_is_right_or_refused(
    bits: int, order: tuple[int, ...], repeats: bool, is_refused: bool
) -> None:
    indexes = np.arange(4).reshape(2, 2).repeat(24, 0).repeat(32, 1) + repeats
    colours = [QUADRANTS[0]] * repeats + list(QUADRANTS)
    table = struct.pack(">HB3B", len(colours), 3, 7, 7, 7) + bytes(v for c in colours for v in c)
    columns = b"".join(struct.pack(">HBB", 0, 1, column) for column in order)
    data = shallow_jpeg2000(indexes, bits).replace(
        b"colr\1\0\0" + (17).to_bytes(4), b"colr\1\0\0" + (16).to_bytes(4)
    )
    boxes = [
        struct.pack(">I4s", 8 + len(body), name) + body
        for name, body in ((b"pclr", table), (b"cmap", columns))
    ]
    data = with_boxes(data, b"".join(boxes))

    if is_refused:
        assert refusal(data).kind == "unsupported"
    else:
        assert difference(opened(data), quadrants()) == 0


@pytest.mark.parametrize(("space", "is_refused"), [(16, False), (14, True), (19, True)])
def test_a_jpeg_2000_in_lab_is_unsupported(space: int, is_refused: bool) -> None:
    data = encoded(quadrants(), "JPEG2000")
    data = data.replace(b"colr\1\0\0" + (16).to_bytes(4), b"colr\1\0\0" + space.to_bytes(4))

    if is_refused:
        assert "with Lab colours" in str(refusal(data))
    else:
        assert difference(opened(data), quadrants()) == 0
