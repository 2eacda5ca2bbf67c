"""Pictures of every layout, against the pixels that were drawn and against a second decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, features

from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader
from tests.support.second_decoder import Pixels, distance, seen_by_vips, vips

# An odd size, so that rows end in the middle of bytes, blocks and tiles.
WIDTH, HEIGHT = 67, 45
# Cells of a picture this small are 4 x 3 pixels, and chroma has half of them.
LOSSY = 10
HAS_AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def drawn() -> Pixels:
    """Return a smooth picture in which every turn, flip and swapped channel shows."""
    down, across = np.mgrid[0:HEIGHT, 0:WIDTH]
    red = across * 255 / (WIDTH - 1)
    green = down * 200 / (HEIGHT - 1) + 20
    blue = np.hypot(across - 15, down - 10) * 3
    pixels: Pixels = np.clip(np.stack([red, green, blue], -1), 0, 255).astype(np.uint8)
    return pixels


def alpha() -> NDArray[np.uint8]:
    """Return transparency that grows to the right in the upper half."""
    values = np.full((HEIGHT, WIDTH), 255, np.uint8)
    values[: HEIGHT // 2] = np.linspace(255, 0, WIDTH).astype(np.uint8)
    return values


def over_white(pixels: Pixels) -> Pixels:
    weight = alpha()[..., None] / 255
    return np.rint(pixels * weight + 255 * (1 - weight)).astype(np.uint8)


def read_by_us(path: Path) -> Pixels:
    return np.asarray(ImageLoader(ImageLimits()).open(Attachment(str(path))))


def image(mode: str) -> Image.Image:
    """Return the drawn picture in *mode*."""
    picture = Image.fromarray(drawn())
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.float32))
    if mode == "P":
        return picture.quantize(200)
    if mode.endswith("A"):
        clear = picture.convert(mode[:-1])
        clear.putalpha(Image.fromarray(alpha()))
        return clear
    return picture.convert(mode)


def expected(mode: str) -> Pixels:
    """Return what a person sees of `image`."""
    if mode in ("I;16", "F"):
        mode = "L"
    if mode == "P":
        return np.asarray(image("P").convert("RGB"))
    grey = {"L": "L", "LA": "L", "1": "1"}.get(mode)
    pixels = np.asarray(Image.fromarray(drawn()).convert(grey).convert("RGB") if grey else drawn())
    return over_white(pixels) if mode.endswith("A") else pixels


# Name -> (mode, format, options, tolerance of single pixels).
Case = tuple[str, str, dict[str, Any], int]
LAYOUTS: dict[str, Case] = {
    **{f"png-{mode}": (mode, "PNG", {}, 0) for mode in ("1", "L", "RGB", "I;16")},
    **{f"png-{mode}": (mode, "PNG", {}, 1) for mode in ("LA", "RGBA")},
    "png-palette": ("P", "PNG", {}, 0),
    "gif": ("P", "GIF", {}, 0),
    "gif-interlaced": ("P", "GIF", {"interlace": True}, 0),
    "jpeg-444": ("RGB", "JPEG", {"quality": 95, "subsampling": 0}, 10),
    "jpeg-422": ("RGB", "JPEG", {"quality": 95, "subsampling": 1}, 16),
    "jpeg-420": ("RGB", "JPEG", {"quality": 95, "subsampling": 2}, 24),
    "jpeg-progressive": ("RGB", "JPEG", {"quality": 95, "progressive": True}, 24),
    "jpeg-restarts": ("RGB", "JPEG", {"quality": 95, "restart_marker_rows": 1}, 24),
    "jpeg-rgb": ("RGB", "JPEG", {"quality": 95, "keep_rgb": True}, 10),
    "jpeg-grey": ("L", "JPEG", {"quality": 95}, 10),
    "jpeg-cmyk": ("CMYK", "JPEG", {"quality": 95}, 24),
    "webp-lossy": ("RGB", "WEBP", {"quality": 95}, 24),
    "webp-lossless": ("RGB", "WEBP", {"lossless": True}, 0),
    "webp-alpha": ("RGBA", "WEBP", {"lossless": True, "exact": True}, 1),
    **{
        f"tiff-{mode}-{name}": (mode, "TIFF", {"compression": name}, 1)
        for mode in ("L", "RGB", "RGBA", "LA", "I;16", "F", "CMYK")
        for name in ("raw", "tiff_lzw", "tiff_deflate", "packbits")
    },
    "tiff-palette": ("P", "TIFF", {"compression": "tiff_lzw"}, 0),
    "tiff-fax": ("1", "TIFF", {"compression": "group4"}, 0),
    "tiff-jpeg": ("RGB", "TIFF", {"compression": "jpeg", "quality": 95}, 24),
    "tiff-jpeg-YCbCr": ("YCbCr", "TIFF", {"compression": "jpeg", "quality": 95}, 24),
    "tiff-strips": ("RGB", "TIFF", {"compression": "tiff_lzw", "strip_size": 900}, 0),
    "tiff-big": ("RGB", "TIFF", {"big_tiff": True}, 0),
    "jp2": ("RGB", "JPEG2000", {}, 1),
    "jp2-lossy": ("RGB", "JPEG2000", {"quality_layers": [45], "quality_mode": "dB"}, 16),
    "jp2-tiles": ("RGBA", "JPEG2000", {"tile_size": (32, 32)}, 2),
    "bmp": ("RGB", "BMP", {}, 0),
    "tga-rle": ("RGBA", "TGA", {"compression": "tga_rle"}, 1),
    "sgi": ("RGB", "SGI", {}, 0),
    "pcx": ("RGB", "PCX", {}, 0),
    "qoi": ("RGBA", "QOI", {}, 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_the_pixels_that_were_drawn(name: str, tmp_path: Path) -> None:
    mode, format, options, tolerance = LAYOUTS[name]
    path = tmp_path / "picture"
    image(mode).save(path, format, **options)

    ours = read_by_us(path)

    truth = expected(mode)
    assert ours.shape == truth.shape
    assert np.abs(ours.astype(int) - truth).max() <= max(tolerance, 1)
    assert distance(ours, truth) <= (1 if tolerance <= 1 else LOSSY)


# libvips converts CMYK without a profile by one of its own.
VIPS_READS = [
    name
    for name, (mode, format, *_) in LAYOUTS.items()
    if format in ("PNG", "GIF", "JPEG", "WEBP", "TIFF") and mode not in ("CMYK", "F")
]


@pytest.mark.parametrize("name", VIPS_READS)
def test_libvips_sees_the_same(name: str, tmp_path: Path) -> None:
    mode, format, options, _ = LAYOUTS[name]
    path = tmp_path / "picture"
    image(mode).save(path, format, **options)

    theirs = seen_by_vips(str(path))

    assert theirs is not None
    assert distance(read_by_us(path), theirs) <= 4


@HAS_AVIF
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_by_its_boxes(mode: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "picture.avif"
    image(mode).save(path, "AVIF", quality=95, exif=exif)

    ours = read_by_us(path)

    assert distance(ours, turned(expected(mode), orientation)) <= 6


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Return *pixels* turned by an EXIF orientation (EXIF 2.32, tag 0x0112)."""
    turns = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[:, ::-1],
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: pixels.transpose(1, 0, 2)[::-1],
    }
    return turns[orientation]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_by_exif(format: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "picture"
    image("RGB").save(path, format, exif=exif)

    ours = read_by_us(path)

    assert distance(ours, turned(drawn(), orientation)) <= LOSSY


# What libvips writes, and Pillow cannot.
WRITTEN_BY_VIPS: dict[str, tuple[str, str, dict[str, object]]] = {
    "png-interlaced": ("RGB", ".png", {"interlace": True}),
    "png-interlaced-alpha": ("RGBA", ".png", {"interlace": True}),
    "png-16": ("RGB", ".png", {"bitdepth": 16}),
    "png-16-alpha": ("RGBA", ".png", {"bitdepth": 16}),
    "png-palette-interlaced": ("RGB", ".png", {"palette": True, "interlace": True, "dither": 0}),
    "png-palette-alpha": ("RGBA", ".png", {"palette": True, "dither": 0}),
    "tiff-tiles": ("RGB", ".tif", {"tile": True, "tile_width": 16, "tile_height": 32}),
    "tiff-tiles-jpeg": ("RGB", ".tif", {"tile": True, "compression": "jpeg", "Q": 95}),
    "tiff-jpeg": ("RGB", ".tif", {"compression": "jpeg", "Q": 75}),
    "tiff-pyramid": ("RGB", ".tif", {"tile": True, "pyramid": True, "tile_width": 16}),
    "tiff-16-predictor": ("RGB16", ".tif", {"compression": "lzw", "predictor": "horizontal"}),
    "tiff-16-alpha": ("RGBA16", ".tif", {}),
    "tiff-premultiplied": ("RGBA", ".tif", {"premultiply": True}),
    "tiff-zstd": ("RGB", ".tif", {"compression": "zstd"}),
    "tiff-grey-white-is-zero": ("L", ".tif", {"miniswhite": True}),
    "tiff-one-bit": ("1", ".tif", {"bitdepth": 1, "compression": "ccittfax4"}),
    "gif": ("RGBA", ".gif", {"dither": 0}),
    "webp-near-lossless": ("RGBA", ".webp", {"near_lossless": True}),
    "webp-alpha": ("RGBA", ".webp", {"Q": 95, "alpha_q": 100}),
    "avif": ("RGB", ".avif", {"Q": 95}),
    "avif-alpha": ("RGBA", ".avif", {"Q": 95}),
    "avif-10-bits": ("RGB16", ".avif", {"Q": 95, "bitdepth": 10}),
    "avif-444": ("RGB", ".avif", {"Q": 95, "subsample_mode": "off"}),
}


@pytest.mark.parametrize("name", WRITTEN_BY_VIPS)
def test_what_libvips_writes_is_what_we_see(name: str, tmp_path: Path) -> None:
    pyvips = vips()
    mode, suffix, options = WRITTEN_BY_VIPS[name]
    pixels = np.asarray(image(mode.removesuffix("16")).convert("L" if mode == "1" else None))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    written = pyvips.Image.new_from_memory(
        np.ascontiguousarray(pixels).tobytes(), WIDTH, HEIGHT, pixels.shape[2], "uchar"
    ).copy(interpretation="b-w" if pixels.shape[2] == 1 else "srgb")
    if mode.endswith("16") or options.get("bitdepth") == 16:
        written = (written.cast("ushort") * 257).cast("ushort").copy(interpretation="rgb16")
    path = str(tmp_path / f"picture{suffix}")
    try:
        written.write_to_file(path, **options)
    except pyvips.Error as error:
        pytest.skip(f"this libvips cannot write it: {error.message[:60]}")

    ours = read_by_us(Path(path))

    truth = expected(mode.removesuffix("16"))
    # A GIF knows no half transparency.
    if suffix != ".gif":
        assert distance(ours, truth) <= LOSSY
    theirs = seen_by_vips(path)
    assert theirs is not None
    assert distance(ours, theirs) <= 4


def test_the_distance_of_two_pictures_sees_a_fault_of_a_part() -> None:
    wrong = drawn().copy()
    wrong[:6, :6] = 255 - wrong[:6, :6]

    assert distance(drawn(), drawn()) == 0
    assert distance(drawn(), wrong) > 12
    assert distance(drawn(), drawn()[:, :-1]) == float("inf")
