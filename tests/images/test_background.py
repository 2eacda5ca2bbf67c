"""Transparent pictures over a colour that the user chooses; white if none is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from idefics_cli.core.colours import Colour
from idefics_cli.core.errors import UsageError
from idefics_cli.core.types import ImageLimits
from idefics_cli.images.background import parse_colour
from idefics_cli.images.colour import PQ
from idefics_cli.images.facts import PixelFacts
from idefics_cli.images.pixels import upright_rgb
from tests.support.pictures import (
    BLUE,
    GREEN,
    QUADRANTS,
    RED,
    YELLOW,
    corners,
    difference,
    encoded,
    noise,
    opened,
    png,
    quadrants,
    with_filter_bytes,
)

ORANGE: Colour = (250, 130, 20)
LIMITS = ImageLimits(background=ORANGE)


def clear(alpha: int) -> Image.Image:
    """Return `quadrants`, whose top right has this *alpha*."""
    image = quadrants().convert("RGBA")
    pixels = np.array(image)
    pixels[:24, 32:, 3] = alpha
    return Image.fromarray(pixels)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "TGA", "QOI", "JPEG2000"])
def test_clear_parts_have_the_colour(format: str) -> None:
    data = encoded(clear(0), format)

    assert difference(corners(opened(data, LIMITS)), (RED, ORANGE, YELLOW, GREEN)) <= 1
    assert difference(corners(opened(data)), (RED, (255, 255, 255), YELLOW, GREEN)) <= 1


def test_half_clear_parts_are_blended_with_it() -> None:
    seen = corners(opened(encoded(clear(51), "PNG"), LIMITS))[1]

    expected = [round(0.2 * above + 0.8 * below) for above, below in zip(BLUE, ORANGE, strict=True)]
    assert np.abs(np.subtract(seen, expected)).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_the_clear_entry_of_a_palette_has_it(format: str) -> None:
    image = quadrants().quantize(4)
    entry = int(np.asarray(image)[6, 48])

    seen = corners(opened(encoded(image, format, transparency=entry), LIMITS))
    assert difference(seen, (RED, ORANGE, YELLOW, GREEN)) <= 1


def test_the_colour_key_has_it_with_8_and_with_16_bits() -> None:
    rows = with_filter_bytes(np.array([[0, 300, 65535]], ">u2").view(np.uint8))
    deep = png(3, 1, rows, depth=16, colour_type=0, extra=[(b"tRNS", b"\x01\x2c")])

    assert corners(opened(encoded(quadrants(), "PNG", transparency=BLUE), LIMITS))[1] == ORANGE
    assert np.asarray(opened(deep, LIMITS)).tolist() == [[[0] * 3, list(ORANGE), [255] * 3]]


def test_the_canvas_around_a_frame_has_it() -> None:
    data = bytearray(encoded(quadrants(32, 24).quantize(4), "GIF"))
    data[6:10] = (64).to_bytes(2, "little") + (48).to_bytes(2, "little")

    image = opened(bytes(data), LIMITS)
    assert image.getpixel((60, 40)) == ORANGE
    assert difference(corners(image.crop((0, 0, 32, 24))), QUADRANTS) <= 1


def test_white_that_photoshop_blended_in_is_exchanged() -> None:
    over = {
        colour: np.asarray(upright_rgb(clear(100), background=colour))
        for colour in (ORANGE, (255, 255, 255))
    }
    blended = Image.fromarray(over[255, 255, 255]).convert("RGBA")
    blended.putalpha(clear(100).getchannel("A"))

    seen = upright_rgb(blended, PixelFacts(may_be_blended=True), background=ORANGE)
    assert difference(seen, Image.fromarray(over[ORANGE])) <= 2


def test_it_is_a_colour_of_screens_beside_high_dynamic_range() -> None:
    seen = upright_rgb(clear(0), PixelFacts(transfer=PQ, primaries=9), background=ORANGE)

    assert corners(seen)[1] == ORANGE


def test_large_pictures_have_it_in_every_band(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idefics_cli.images.pixels.LARGE_PIXELS", 100)

    assert corners(opened(encoded(clear(0), "PNG"), LIMITS)) == [RED, ORANGE, YELLOW, GREEN]


def test_pictures_without_transparency_stay() -> None:
    for image in (noise(), noise().convert("RGBA")):
        assert difference(opened(encoded(image, "PNG"), LIMITS), noise()) == 0


@pytest.mark.parametrize(
    ("text", "colour"),
    [("black", (0, 0, 0)), ("LightGrey", (211, 211, 211)), ("#1a2B3c", (26, 43, 60))],
)
def test_names_and_numbers_are_colours(text: str, colour: Colour) -> None:
    assert parse_colour(text) == colour


def test_a_mistyped_colour_has_a_suggestion() -> None:
    with pytest.raises(UsageError, match="`orang` is not a colour") as caught:
        parse_colour("orang")
    assert caught.value.hint == "did you mean `orange`?"
    with pytest.raises(UsageError):
        parse_colour("#12345")
