"""Orientation, frames and metadata: the loader gives the picture that a viewer shows."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, features

from tests.support.pictures import (
    BLUE,
    GREEN,
    QUADRANTS,
    corners,
    difference,
    encoded,
    opened,
    png,
    quadrants,
    with_filter_bytes,
)

# One picture in every format -----------------------------------------------------------------

VARIANTS: dict[str, Callable[[Image.Image], bytes]] = {
    "png": lambda image: encoded(image, "PNG"),
    "png-alpha": lambda image: encoded(image.convert("RGBA"), "PNG"),
    "png-16": lambda image: png(
        64,
        48,
        with_filter_bytes((np.asarray(image).astype(">u2") * 257).reshape(48, -1).view(np.uint8)),
        depth=16,
        colour_type=2,
    ),
    "bmp": lambda image: encoded(image, "BMP"),
    "tiff-cmyk": lambda image: encoded(image.convert("CMYK"), "TIFF"),
    "tiff-hidden-alpha": lambda image: encoded(image.convert("RGBX"), "TIFF"),
    "jpeg": lambda image: encoded(image, "JPEG", quality=98, subsampling=0),
    "jpeg-cmyk": lambda image: encoded(image.convert("CMYK"), "JPEG", quality=98),
    "webp": lambda image: encoded(image, "WEBP", lossless=True),
    "turned": lambda image: encoded(
        image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif_of(6)
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_to_store_a_picture_gives_the_same_picture(name: str) -> None:
    x, y = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 48))
    picture = Image.fromarray(np.stack([x, y, 255 - (x + y) / 2], axis=-1).astype(np.uint8))

    assert difference(opened(VARIANTS[name](picture)), picture) <= 6


# Orientation ---------------------------------------------------------------------------------


def exif_of(orientation: object) -> Image.Exif:
    """Return metadata as a camera writes it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "a camera"
    return exif


# The raw picture of an upright scene for each orientation of EXIF 2.32, made with numpy.
STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda scene: scene,
    2: lambda scene: scene[:, ::-1],
    3: lambda scene: scene[::-1, ::-1],
    4: lambda scene: scene[::-1],
    5: lambda scene: scene.swapaxes(0, 1),
    6: lambda scene: np.rot90(scene, 1),
    7: lambda scene: scene.swapaxes(0, 1)[::-1, ::-1],
    8: lambda scene: np.rot90(scene, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_turned_picture_comes_out_upright(format: str, orientation: int) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    stored = np.ascontiguousarray(STORED[orientation](np.asarray(quadrants())))
    data = encoded(Image.fromarray(stored), format, exif=exif_of(orientation))

    image = opened(data)

    assert image.size == (64, 48)
    assert difference(corners(image), QUADRANTS) <= 12
    assert image.info == {"original_size": (64, 48)}
    assert not dict(image.getexif())


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_tall_picture_stored_wide_comes_out_tall(format: str) -> None:
    stored = np.ascontiguousarray(STORED[8](np.asarray(quadrants(48, 64))))
    assert stored.shape == (48, 64, 3)

    image = opened(encoded(Image.fromarray(stored), format, exif=exif_of(8)))

    assert image.size == (48, 64)
    assert difference(corners(image), QUADRANTS) <= 12


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    image = opened(encoded(quadrants(), "JPEG", exif=exif_of(orientation)))

    assert difference(corners(image), QUADRANTS) <= 4


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" * 3],
)
def test_broken_metadata_does_not_cost_the_picture(exif: bytes) -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        image = opened(encoded(quadrants(), format, exif=exif))

        assert difference(corners(image), QUADRANTS) <= 12


# Frames and metadata -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("GIF", {"duration": 50}),
        ("PNG", {"duration": 50}),
        ("WEBP", {"lossless": True, "duration": 50}),
        ("TIFF", {}),
        ("MPO", {"quality": 95}),
    ],
)
def test_of_several_frames_the_first_is_the_picture(
    format: str, options: dict[str, object]
) -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in (BLUE, GREEN)]
    data = encoded(quadrants(), format, save_all=True, append_images=frames, **options)

    assert difference(corners(opened(data)), QUADRANTS) <= 4


def test_nothing_of_the_file_stays_with_the_picture() -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "secret")
    data = encoded(
        quadrants(), "PNG", pnginfo=notes, dpi=(300, 300), exif=exif_of(1), icc_profile=b"x" * 200
    )

    image = opened(data)

    assert image.info == {"original_size": (64, 48)}
    assert type(image) is Image.Image
    assert image.format is None


def test_files_that_pillow_warns_of_open_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    truth = encoded(quadrants(), "ICO", sizes=[(64, 48)])
    odd = bytearray(truth)
    odd[6:8] = bytes((32, 32))  # the directory says 32x32, the PNG in it 64x48

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = opened(bytes(odd))

    assert not caught
    assert image.size == (64, 48)
    assert capfd.readouterr() == ("", "")
