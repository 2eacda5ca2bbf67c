"""Colours: profiles are applied where they make a visible difference, and HDR is tone-mapped."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from idefics_cli.images.colour import HLG, PQ, to_srgb, tone_mapped
from tests.support.pictures import (
    QUADRANTS,
    Colour,
    corners,
    difference,
    encoded,
    opened,
    png,
    quadrants,
    with_filter_bytes,
)

# XYZ of the primaries at D50, red, green and blue, as in the profiles of these spaces.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03135, 0.00008, 0.82510))
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))


def profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """Return an ICC profile, version 2.1 (ICC.1:2001-04)."""
    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249)} | tags
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s", start + len(body), 0x02100000, b"mntr", space, pcs)
    head = (head + bytes(12) + b"acsp").ljust(68, b"\0")
    return (head + xyz(0.9642, 1.0, 0.8249)[8:]).ljust(128, b"\0") + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(primaries: tuple[tuple[float, float, float], ...], gamma: float) -> bytes:
    tags = {bytes([c]) + b"XYZ": xyz(*p) for c, p in zip(b"rgb", primaries, strict=True)}
    return profile(b"RGB ", tags | {bytes([c]) + b"TRC": curve(gamma) for c in b"rgb"})


def expected(primaries: tuple[tuple[float, float, float], ...], gamma: float) -> list[Colour]:
    """Return the quadrants of such a space in sRGB, computed without a library."""
    linear = (np.array(QUADRANTS) / 255) ** gamma
    light = np.clip(linear @ np.array(primaries) @ np.linalg.inv(np.array(SRGB)), 0, 1)
    codes = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return [tuple(row) for row in np.rint(codes * 255).astype(int).tolist()]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    ("primaries", "gamma"), [(ADOBE, 2.2), (PROPHOTO, 1.8), (P3, 2.2), (SRGB, 1.8)]
)
def test_a_profile_that_makes_a_difference_is_applied(
    format: str, primaries: tuple[tuple[float, float, float], ...], gamma: float
) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(format, {"quality": 98})
    data = encoded(quadrants(), format, icc_profile=rgb_profile(primaries, gamma), **options)

    assert difference(corners(opened(data)), expected(primaries, gamma)) <= 8


def test_a_profile_near_srgb_changes_nothing_and_costs_no_copy() -> None:
    for near in (
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        rgb_profile(SRGB, 2.2)[:-1] + b"\0",
    ):
        image = quadrants()
        image.info["icc_profile"] = near
        changed = to_srgb(image)
        assert difference(changed, quadrants()) <= 4 or changed is not image
    assert to_srgb(quadrants()).info == {}


def test_an_srgb_profile_is_not_applied() -> None:
    image = quadrants()
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    assert to_srgb(image) is image


def test_alpha_palettes_and_orientation_outlive_a_profile() -> None:
    wide = rgb_profile(PROPHOTO, 1.8)
    colours = expected(PROPHOTO, 1.8)
    clear = quadrants().convert("RGBA")
    clear.putalpha(Image.new("L", (64, 48), 255))
    clear.paste((0, 0, 0, 0), (0, 0, 32, 24))
    exif = Image.Exif()
    exif[0x0112] = 6

    as_alpha = opened(encoded(clear, "PNG", icc_profile=wide))
    as_palette = opened(encoded(quadrants().quantize(4), "PNG", icc_profile=wide))
    turned = opened(encoded(quadrants(), "PNG", icc_profile=wide, exif=exif))

    assert difference(corners(as_alpha), [(255, 255, 255), *colours[1:]]) <= 3
    assert difference(corners(as_palette), colours) <= 3
    assert turned.size == (48, 64)
    assert difference(corners(turned), [colours[2], colours[0], colours[3], colours[1]]) <= 3


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_profile_is_applied(mode: str) -> None:
    dark = profile(b"GRAY", {b"kTRC": curve(1.0)})
    value = 0.25
    image = Image.new("L", (8, 8), round(value * 255))
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), round(value * 65535), np.uint16))
    else:
        image = image.convert(mode)
    seen = opened(encoded(image, "PNG", icc_profile=dark))

    assert difference(corners(seen), [(137,) * 3] * 4) <= 2


def test_a_cmyk_profile_is_applied() -> None:
    # Three points for each ink; in this space, all inks but black are the same green.
    grid = np.full((3, 3, 3, 3, 3), (120, 90, 160), np.uint8)
    grid[0, 0, 0, 0] = (255, 128, 128)
    grid[..., 2, :] = (0, 128, 128)
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * v for v in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    lut = b"mft1\0\0\0\0\4\3\3\0" + identity + ramp * 4 + grid.tobytes() + ramp * 3
    press = profile(b"CMYK", {b"A2B0": lut}, pcs=b"Lab ")

    for format in ("JPEG", "TIFF"):
        image = Image.new("CMYK", (16, 16), (0, 255, 0, 0))
        red, green, blue = corners(opened(encoded(image, format, icc_profile=press)))[0]
        assert green > red + 50
        assert green > blue + 50


@pytest.mark.parametrize(
    "broken",
    [
        b"no profile",
        bytes(200),
        rgb_profile(PROPHOTO, 1.8)[:200],
        profile(b"GRAY", {b"kTRC": curve(1.0)}),
        profile(b"RGB ", {}),
        profile(b"CMYK", {b"A2B0": b"mft1" + bytes(60)}, pcs=b"Lab "),
    ],
)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_a_broken_or_unfit_profile_is_ignored(broken: bytes, format: str) -> None:
    data = encoded(quadrants(), format, icc_profile=broken)

    assert difference(corners(opened(data)), QUADRANTS) <= 10


# High dynamic range ----------------------------------------------------------------------------


def pq_code(nits: float) -> int:
    """Return the 8-bit code of a luminance (SMPTE ST 2084)."""
    share = (nits / 10_000) ** 0.1593017578125
    return int(255 * ((0.8359375 + 18.8515625 * share) / (1 + 18.6875 * share)) ** 78.84375 + 0.5)


def greys(*codes: int) -> Image.Image:
    return Image.fromarray(np.repeat(np.array([codes], np.uint8)[..., None], 3, axis=-1))


def row(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)[0, :, 0]


def test_pq_shows_white_as_nearly_white_and_keeps_darker_greys() -> None:
    codes = [pq_code(nits) for nits in (0, 203 * 0.2140, 203, 1000, 10_000)]

    black, middle, white, peak, beyond = row(tone_mapped(greys(*codes), PQ, 9)).tolist()

    assert black == 0
    assert abs(middle - 128) <= 3  # 0.214 is the light of the code 128 of sRGB
    assert 225 <= white < peak
    assert (peak, beyond) == (255, 255)


def test_hlg_shows_its_graphics_white_as_nearly_white() -> None:
    black, white, peak = row(tone_mapped(greys(0, round(0.75 * 255), 255), HLG, 9)).tolist()

    assert (black, peak) == (0, 255)
    assert 225 <= white < 255


def test_the_wide_primaries_of_hdr_become_those_of_a_screen() -> None:
    grey = pq_code(100)
    pixel = Image.new("RGB", (1, 1), (grey, grey, pq_code(20)))

    narrow, wide = (tone_mapped(pixel, PQ, primaries).getpixel((0, 0)) for primaries in (1, 9))

    assert isinstance(narrow, tuple)
    assert isinstance(wide, tuple)
    assert wide[2] < narrow[2]


@pytest.mark.parametrize(("transfer", "is_hdr"), [(13, False), (PQ, True), (HLG, True)])
def test_a_png_says_by_its_cicp_chunk_that_it_is_hdr(transfer: int, is_hdr: bool) -> None:
    rows = with_filter_bytes(np.asarray(quadrants()).reshape(48, -1))
    chunk = (b"cICP", bytes((9, transfer, 0, 1)))

    image = opened(png(64, 48, rows, depth=8, colour_type=2, extra=[chunk]))

    assert (difference(image, quadrants()) > 20) == is_hdr
    if is_hdr:
        assert difference(image, tone_mapped(quadrants(), transfer, 9)) == 0


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
@pytest.mark.parametrize(("transfer", "is_hdr"), [(13, False), (PQ, True), (HLG, True)])
def test_an_avif_says_by_its_colour_box_that_it_is_hdr(transfer: int, is_hdr: bool) -> None:
    data = bytearray(encoded(quadrants(), "AVIF", quality=98))
    place = data.index(b"colrnclx") + 8
    data[place : place + 4] = struct.pack(">HH", 9, transfer)

    image = opened(bytes(data))

    expected_image = tone_mapped(quadrants(), transfer, 9) if is_hdr else quadrants()
    assert difference(corners(image), corners(expected_image)) <= 12


# The gamma of a PNG ------------------------------------------------------------------------------


def with_gamma(gamma: float, image: Image.Image, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of the samples that show *image* on a screen if their gamma is applied."""
    linear = (np.asarray(image) / 255) ** 2.2
    samples = np.rint(linear**gamma * 255).astype(np.uint8)
    height, width = samples.shape[:2]
    return png(
        width,
        height,
        with_filter_bytes(samples.reshape(height, -1)),
        depth=8,
        colour_type=2 if samples.ndim == 3 else 0,
        extra=((b"gAMA", struct.pack(">I", round(gamma * 100_000))), *chunks),
    )


@pytest.mark.parametrize("gamma", [0.35, 1 / 2.2, 0.55, 1.0])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_gamma_of_a_png_is_applied(gamma: float, mode: str) -> None:
    picture = quadrants().convert(mode)

    seen = opened(with_gamma(gamma, picture))

    # sRGB is not quite a power of 2.2, and dark samples of a high gamma are few.
    assert difference(seen, picture.convert("RGB")) <= 12


def test_srgb_and_profiles_come_before_gamma() -> None:
    picture = quadrants()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stored = opened(with_gamma(1.0, picture, (b"sRGB", b"\0")))

    assert difference(stored, picture) > 40
    iccp = (b"iCCP", b"sRGB\0\0" + zlib.compress(profile))
    assert difference(opened(with_gamma(1.0, picture, iccp)), stored) == 0


@pytest.mark.parametrize("gamma", [0.0, 0.44, 0.46, 21.0])
def test_an_odd_or_usual_gamma_costs_no_picture(gamma: float) -> None:
    chunk = (b"gAMA", struct.pack(">I", round(gamma * 100_000)))
    rows = with_filter_bytes(np.asarray(quadrants()).reshape(48, -1))

    seen = opened(png(64, 48, rows, depth=8, colour_type=2, extra=(chunk,)))

    assert (difference(seen, quadrants()) == 0) == (gamma < 1)


def test_gamma_changes_neither_alpha_nor_a_colour_key() -> None:
    gamma = (b"gAMA", struct.pack(">I", 100_000))
    key = (b"tRNS", struct.pack(">HHH", *QUADRANTS[0]))
    rows = with_filter_bytes(np.asarray(quadrants()).reshape(48, -1))
    plain = opened(png(64, 48, rows, depth=8, colour_type=2, extra=(gamma,)))

    seen = opened(png(64, 48, rows, depth=8, colour_type=2, extra=(gamma, key)))

    assert corners(seen) == [(255, 255, 255), *corners(plain)[1:]]
