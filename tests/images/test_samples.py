"""Files whose samples have an unusual number of bits or range."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import (
    QUADRANTS,
    corners,
    difference,
    encoded,
    opened,
    quadrants,
    refusal,
)

PICTURE = np.asarray(quadrants())
GREY = np.asarray(quadrants().convert("L"))
WHITE = (255, 255, 255)

# DirectDraw surfaces ---------------------------------------------------------------------------

RGB, ALPHA, LUMINANCE = 0x40, 0x1, 0x20000


def dds(pixels: bytes, flags: int, bits: int, masks: tuple[int, ...]) -> bytes:
    """Return a DDS file of 64x48 pixels whose samples are the bits of *masks*."""
    masks = (*masks, 0, 0, 0, 0)[:4]
    surface = struct.pack("<IIIIIII44x", 124, 0x1007, 48, 64, 0, 0, 0)
    layout = struct.pack("<IIII4I", 32, flags, 0, bits, *masks)
    return b"DDS " + surface + layout + struct.pack("<5I", 0x1000, 0, 0, 0, 0) + pixels


@pytest.mark.parametrize(
    ("bits", "masks", "dtype"),
    [
        (16, (0xF800, 0x07E0, 0x001F), "<u2"),
        (16, (0x7C00, 0x03E0, 0x001F), "<u2"),
        (32, (0xFF0000, 0xFF00, 0xFF), "<u4"),
        (32, (0xFF, 0xFF00, 0xFF0000), "<u4"),
        (32, (0x3FF00000, 0xFFC00, 0x3FF), "<u4"),
    ],
)
@pytest.mark.parametrize("clear", [False, True])
def test_the_masks_of_a_dds_say_where_its_samples_are(
    bits: int, masks: tuple[int, ...], dtype: str, clear: bool
) -> None:
    pixels = np.zeros((48, 64), np.uint64)
    for band, mask in enumerate(masks):
        low = mask & -mask
        levels = np.rint(PICTURE[..., band] * (mask // low / 255)).astype(np.uint64)
        pixels |= levels * np.uint64(low)
    alpha = (1 << bits) - 1 - sum(masks)  # all bits that are left
    if alpha:
        masks = (*masks, alpha)
        pixels[24 * clear :] |= np.uint64(alpha)
    data = dds(pixels.astype(dtype).tobytes(), RGB | ALPHA * bool(alpha), bits, masks)

    expected = [WHITE, WHITE, *QUADRANTS[2:]] if clear and alpha else QUADRANTS
    assert difference(corners(opened(data)), expected) <= 4


def test_a_dds_with_three_bytes_a_pixel_is_read() -> None:
    data = dds(PICTURE[..., ::-1].tobytes(), RGB, 24, (0xFF0000, 0xFF00, 0xFF))

    assert difference(opened(data), quadrants()) == 0


@pytest.mark.parametrize("flags", [LUMINANCE, LUMINANCE | RGB])
def test_a_grey_dds_is_grey_and_not_red(flags: int) -> None:
    data = dds(GREY.tobytes(), flags, 8, (0xFF,))

    assert difference(opened(data), Image.fromarray(GREY).convert("RGB")) == 0


def test_a_grey_dds_of_16_bits_is_grey() -> None:
    data = dds((GREY.astype("<u2") * 257).tobytes(), LUMINANCE | RGB, 16, (0xFFFF,))

    assert difference(opened(data), Image.fromarray(GREY).convert("RGB")) == 0


def test_a_dds_without_its_last_pixel_is_cut_off() -> None:
    data = dds(PICTURE.tobytes()[:-1], RGB, 24, (0xFF0000, 0xFF00, 0xFF))

    assert refusal(data).kind == "truncated"


# PNM -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [1, 15, 100, 254, 255, 256, 1023, 4095, 65535])
def test_a_pnm_has_any_largest_sample(largest: int) -> None:
    dtype = ">u2" if largest > 255 else "u1"
    scaled = np.rint(PICTURE / 255 * largest)
    grey = np.rint(GREY / 255 * largest)

    colour = opened(b"P6 64 48 %d\n" % largest + scaled.astype(dtype).tobytes())
    as_grey = opened(b"P5 64 48 %d\n" % largest + grey.astype(dtype).tobytes())

    shown = np.rint(scaled / largest * 255).astype(np.uint8)
    shown_grey = np.rint(grey / largest * 255).astype(np.uint8)
    assert difference(colour, Image.fromarray(shown)) == 0
    assert difference(as_grey, Image.fromarray(shown_grey).convert("RGB")) <= 1


@pytest.mark.parametrize("magic", [b"P5", b"P6"])
def test_a_pnm_without_its_last_sample_is_cut_off(magic: bytes) -> None:
    count = 64 * 48 * (3 if magic == b"P6" else 1)

    assert refusal(magic + b" 64 48 1000\n" + bytes(2 * count - 1)).kind == "truncated"


# Targa -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0, 255])
def test_the_palette_of_a_tga_has_its_own_alpha(alpha: int) -> None:
    indexes = np.arange(4).reshape(2, 2).repeat(24, 0).repeat(32, 1).astype(np.uint8)
    colours = b"".join(bytes([*colour[::-1], alpha]) for colour in QUADRANTS[:3])
    colours += bytes([*QUADRANTS[3][::-1], 0])
    header = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 4, 32, 0, 0, 64, 48, 8, 0x20)

    image = opened(header + colours + indexes.tobytes())

    # An alpha of 0 for all colours is none.
    assert corners(image) == [*QUADRANTS[:3], WHITE if alpha else QUADRANTS[3]]


def test_a_tga_whose_palette_has_15_bits_is_unsupported() -> None:
    data = bytearray(encoded(quadrants().convert("P"), "TGA"))
    data[7] = 15

    assert refusal(bytes(data)).kind == "unsupported"
