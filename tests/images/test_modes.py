"""Modes and transparency: the loader gives the colours that a viewer shows."""

from __future__ import annotations

import io

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from idefics_cli.images.pixels import upright_rgb
from tests.support.pictures import (
    BLUE,
    GREEN,
    QUADRANTS,
    RED,
    YELLOW,
    Colour,
    corners,
    difference,
    encoded,
    noise,
    opened,
    png,
    quadrants,
    with_filter_bytes,
)

WHITE = (255, 255, 255)

FORMATS: dict[str, tuple[str, dict[str, object], int]] = {
    # name: Pillow's format, options, largest difference of a sample
    "jpeg": ("JPEG", {"quality": 95}, 4),
    "jpeg-progressive": ("JPEG", {"quality": 95, "progressive": True}, 4),
    "mpo": ("MPO", {"quality": 95}, 4),
    "png": ("PNG", {}, 0),
    "gif": ("GIF", {}, 0),
    "webp": ("WEBP", {"quality": 95}, 6),
    "webp-lossless": ("WEBP", {"lossless": True}, 0),
    "tiff": ("TIFF", {}, 0),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}, 0),
    "tiff-deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}, 0),
    "tiff-jpeg": ("TIFF", {"compression": "jpeg", "quality": 95}, 8),
    "tiff-packbits": ("TIFF", {"compression": "packbits"}, 0),
    "tiff-big": ("TIFF", {"big_tiff": True}, 0),
    "bmp": ("BMP", {}, 0),
    "ppm": ("PPM", {}, 0),
    "tga": ("TGA", {}, 0),
    "tga-rle": ("TGA", {"compression": "tga_rle"}, 0),
    "pcx": ("PCX", {}, 0),
    "sgi": ("SGI", {}, 0),
    "qoi": ("QOI", {}, 0),
    "dds": ("DDS", {}, 0),
    "jpeg2000": ("JPEG2000", {}, 0),
    "jpeg2000-codestream": ("JPEG2000", {"no_jp2": True}, 0),
    "avif": ("AVIF", {"quality": 95}, 6),
    "ico": ("ICO", {"sizes": [(64, 48)]}, 0),
    "ico-bmp": ("ICO", {"sizes": [(64, 48)], "bitmap_format": "bmp"}, 0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_colours_of_every_format_are_those_that_were_drawn(name: str) -> None:
    format, options, tolerance = FORMATS[name]
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")

    image = opened(encoded(quadrants(), format, **options))

    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert difference(corners(image), QUADRANTS) <= tolerance


def test_an_icns_gives_its_largest_picture() -> None:
    image = opened(encoded(quadrants(16, 16), "ICNS", append_images=[]))

    assert image.size == (1024, 1024)
    assert difference(corners(image), QUADRANTS) == 0


def luma(colour: Colour) -> Colour:
    """Return the grey of a colour by ITU-R BT.601, as Pillow does."""
    value = round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])
    return value, value, value


NEEDS_PILLOW_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="older ones cannot read what they wrote"
)
GREYS = tuple(luma(colour) for colour in QUADRANTS)
BLACK_AND_WHITE = tuple((255, 255, 255) if c[0] > 127 else (0, 0, 0) for c in GREYS)


@pytest.mark.parametrize(
    ("mode", "format", "expected", "tolerance"),
    [
        ("L", "PNG", GREYS, 1),
        ("L", "JPEG", GREYS, 2),
        ("L", "TIFF", GREYS, 1),
        ("LA", "PNG", GREYS, 1),
        ("I", "TIFF", GREYS, 1),
        ("F", "TIFF", GREYS, 1),
        ("RGBA", "PNG", QUADRANTS, 0),
        ("RGBA", "WEBP", QUADRANTS, 10),
        ("RGBA", "TIFF", QUADRANTS, 0),
        ("RGBA", "BMP", QUADRANTS, 0),
        ("RGBX", "TIFF", QUADRANTS, 0),
        ("CMYK", "TIFF", QUADRANTS, 1),
        ("CMYK", "JPEG", QUADRANTS, 4),
        pytest.param("YCbCr", "TIFF", QUADRANTS, 4, marks=NEEDS_PILLOW_13),
        ("YCbCr", "JPEG", QUADRANTS, 4),
        ("LAB", "TIFF", QUADRANTS, 8),
    ],
)
def test_a_picture_in_any_mode_looks_the_same(
    mode: str, format: str, expected: tuple[Colour, ...], tolerance: int
) -> None:
    image = opened(encoded(quadrants().convert(mode), format))

    assert image.mode == "RGB"
    assert difference(corners(image), expected) <= tolerance


@pytest.mark.parametrize("format", ["PNG", "GIF", "TIFF", "BMP", "TGA", "PCX"])
def test_a_palette_is_looked_up(format: str) -> None:
    image = quadrants().quantize(4)
    assert image.mode == "P"

    assert difference(corners(opened(encoded(image, format))), QUADRANTS) <= 1


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM", "GIF"])
def test_one_bit_is_black_and_white(format: str) -> None:
    image = quadrants().convert("L").point(lambda value: 255 if value > 127 else 0).convert("1")

    assert corners(opened(encoded(image, format))) == list(BLACK_AND_WHITE)


def test_an_inverted_adobe_cmyk_jpeg_is_not_a_negative() -> None:
    # Pillow writes CMYK as Photoshop does: inverted, with an Adobe marker.
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    assert b"Adobe" in data

    assert difference(corners(opened(data)), [(255, 0, 0)] * 4) <= 4


def test_lab_with_signed_a_and_b_is_red_where_red_was() -> None:
    # L* 54.29, a* 80.8, b* 69.9: the red of sRGB at the white point D50 (ICC). TIFF 6.0 stores
    # a* and b* as signed bytes; in Pillow's memory they are offset by 128.
    data = encoded(Image.new("LAB", (8, 8), (138, 81 + 128, 70 + 128)), "TIFF")
    assert bytes((138, 81, 70)) * 64 in data

    red = Image.new("RGB", (8, 8), (255, 0, 0))
    assert difference(opened(data), red) <= 8


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "HSV", "RGBX", "YCbCr", "LAB", "CMYK", "1"])
def test_modes_that_no_file_has_convert_too(mode: str) -> None:
    source = quadrants()
    steps = {"La": "LA", "RGBa": "RGBA", "PA": "P"}
    image = source.convert(steps.get(mode, mode)).convert(mode)
    expected = GREYS if mode == "La" else BLACK_AND_WHITE if mode == "1" else QUADRANTS
    tolerance = 52 if mode == "PA" else 255 if mode == "1" else 9  # web palette; dithered

    upright = upright_rgb(image)

    assert (upright.mode, upright.size) == ("RGB", source.size)
    assert difference(corners(upright), expected) <= tolerance


# 16 bits and more ----------------------------------------------------------------------------

RAMP: NDArray[np.uint16] = (np.arange(64 * 32, dtype=np.uint16) * 32).reshape(32, 64)


def grey(image: Image.Image) -> NDArray[np.uint8]:
    """Return the samples of a grey picture."""
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encoded(Image.fromarray(RAMP), "PNG"), "I;16"),
        (encoded(Image.fromarray(RAMP), "TIFF"), "I;16"),
        (encoded(Image.fromarray(RAMP.astype(">u2")), "TIFF"), "I;16B"),
        (encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), "I"),
        (encoded(Image.fromarray(RAMP), "JPEG2000"), "I;16"),
        (b"P5 64 32 65535\n" + RAMP.astype(">u2").tobytes(), "I"),
    ],
    ids=["png", "tiff-little", "tiff-big", "tiff-32", "jpeg2000", "pgm"],
)
def test_16_bit_grey_keeps_its_high_byte(data: bytes, name: str) -> None:
    assert Image.open(io.BytesIO(data)).mode == name

    assert (grey(opened(data)) == RAMP >> 8).all()


def test_a_dark_16_bit_pgm_stays_dark() -> None:
    dark = RAMP >> 8

    assert grey(opened(b"P5 64 32 65535\n" + dark.astype(">u2").tobytes())).max() == 0


def test_32_bit_integers_up_to_255_are_taken_as_they_are() -> None:
    values = (RAMP >> 8).astype(np.int32)

    assert (grey(opened(encoded(Image.fromarray(values), "TIFF"))) == values).all()


@pytest.mark.parametrize("scale", [1.0, 1 / 255], ids=["0..255", "0..1"])
def test_floats_of_either_usual_range_are_the_same_picture(scale: float) -> None:
    values = ((RAMP >> 8) * np.float32(scale)).astype(np.float32)

    assert (grey(opened(encoded(Image.fromarray(values), "TIFF"))) == RAMP >> 8).all()


@pytest.mark.parametrize("type_", [np.int32, np.float32])
def test_data_beyond_any_usual_range_shows_from_black_to_white(type_: type[np.generic]) -> None:
    values: NDArray[np.generic] = (RAMP.astype(np.int64) * 1000 - 5_000_000).astype(type_)

    shown = grey(opened(encoded(Image.fromarray(values), "TIFF"))).astype(int)

    assert (shown.min(), shown.max()) == (0, 255)
    assert (np.diff(shown.ravel()) >= 0).all()


def test_a_float_picture_with_holes_is_still_a_picture() -> None:
    values = ((RAMP >> 8) / 255).astype(np.float32)
    values[0, 0], values[0, 1] = np.nan, np.inf

    shown = grey(opened(encoded(Image.fromarray(values), "TIFF")))

    assert (shown[1:] == RAMP[1:] >> 8).all()


def test_a_float_picture_of_holes_only_is_black() -> None:
    values = np.full((8, 8), np.nan, np.float32)

    assert grey(opened(encoded(Image.fromarray(values), "TIFF"))).max() == 0


def deep_rows() -> NDArray[np.uint8]:
    """Return the quadrants with 16 bits per sample, big-endian, (48, 64 * 6)."""
    deep = np.asarray(quadrants()).astype(">u2") * 256 + 7
    return deep.astype(">u2").reshape(48, -1).view(np.uint8)


def test_16_bit_colour_keeps_its_high_byte() -> None:
    data = png(64, 48, with_filter_bytes(deep_rows()), depth=16, colour_type=2)

    assert corners(opened(data)) == list(QUADRANTS)


def test_the_colour_key_of_a_16_bit_png_is_white() -> None:
    key = b"".join((value * 256 + 7).to_bytes(2) for value in BLUE)
    rows = with_filter_bytes(deep_rows())

    data = png(64, 48, rows, depth=16, colour_type=2, extra=[(b"tRNS", key)])

    assert corners(opened(data)) == [RED, WHITE, YELLOW, GREEN]


def test_the_colour_key_of_a_16_bit_grey_png_is_white() -> None:
    rows = with_filter_bytes(RAMP.astype(">u2").view(np.uint8))
    data = png(64, 32, rows, depth=16, colour_type=0, extra=[(b"tRNS", b"\0\0")])

    shown = grey(opened(data))

    assert shown[0, 0] == 255
    assert (shown.ravel()[1:] == RAMP.ravel()[1:] >> 8).all()


# Transparency --------------------------------------------------------------------------------


def half_clear() -> Image.Image:
    """Return a picture: left opaque, top right clear, bottom right half clear green."""
    image = quadrants().convert("RGBA")
    pixels = np.array(image)
    pixels[:24, 32:, 3] = 0
    pixels[24:, 32:, 3] = 51  # a fifth
    return Image.fromarray(pixels)


PALE_GREEN = (round(0.2 * GREEN[0] + 204), round(0.2 * GREEN[1] + 204), round(0.2 * GREEN[2] + 204))
HALF_CLEAR = (RED, WHITE, YELLOW, PALE_GREEN)


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 1),
        ("WEBP", {"lossless": True, "exact": True}, 1),
        ("TIFF", {}, 1),
        ("TGA", {}, 1),
        ("ICO", {"sizes": [(64, 48)]}, 1),
        ("QOI", {}, 1),
        ("DDS", {}, 1),
        ("JPEG2000", {}, 1),
    ],
)
def test_what_is_clear_is_white(format: str, options: dict[str, object], tolerance: int) -> None:
    image = opened(encoded(half_clear(), format, **options))

    assert difference(corners(image), HALF_CLEAR) <= tolerance


def test_premultiplied_alpha_is_divided_out() -> None:
    assert difference(corners(upright_rgb(half_clear().convert("RGBa"))), HALF_CLEAR) <= 4


def test_grey_with_alpha_is_over_white() -> None:
    image = Image.merge("LA", (Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 51)))

    assert opened(encoded(image, "PNG")).getpixel((4, 4)) == (204, 204, 204)


def blue_index() -> tuple[Image.Image, int]:
    image = quadrants().quantize(4)
    return image, int(np.asarray(image)[6, 48])


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_the_clear_entry_of_a_palette_is_white(format: str) -> None:
    image, clear = blue_index()

    seen = corners(opened(encoded(image, format, transparency=clear)))

    assert difference(seen, (RED, WHITE, YELLOW, GREEN)) <= 1


def test_a_palette_with_an_alpha_for_each_entry_is_over_white() -> None:
    image, clear = blue_index()
    alphas = bytes(0 if entry == clear else 255 for entry in range(4))

    seen = corners(opened(encoded(image, "PNG", transparency=alphas)))

    assert difference(seen, (RED, WHITE, YELLOW, GREEN)) <= 1


def test_the_colour_key_of_an_rgb_png_is_white() -> None:
    seen = corners(opened(encoded(quadrants(), "PNG", transparency=BLUE)))

    assert seen == [RED, WHITE, YELLOW, GREEN]


def test_the_colour_key_of_a_grey_png_is_white() -> None:
    image = quadrants().convert("L")
    key = image.getpixel((48, 12))

    seen = corners(opened(encoded(image, "PNG", transparency=key)))

    assert seen[1] == WHITE
    assert difference(seen[:1], GREYS[:1]) <= 1


def test_an_opaque_picture_is_untouched_by_the_white_below_it() -> None:
    image = noise()

    assert difference(opened(encoded(image.convert("RGBA"), "PNG")), image) == 0


def test_an_rgb_picture_is_the_same_without_its_metadata() -> None:
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    picture.info["comment"] = "of the camera"
    upright = upright_rgb(picture)
    assert upright is not picture
    assert (upright.mode, upright.size, upright.info) == ("RGB", (40, 30), {})
    assert upright.tobytes() == picture.convert("RGB").tobytes()
    assert picture.info == {"comment": "of the camera"}
