"""Damaged files of every format: each gives a picture or an `ImageError`."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image, features

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import ImageLimits
from tests.support.pictures import encoded, noise, opened

_LIMITS = ImageLimits(max_pixels=1_000_000)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "a camera"
    return exif


def _samples() -> dict[str, bytes]:
    picture = noise()
    clear = picture.copy()
    clear.putalpha(picture.getchannel(0))
    deep = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 54)
    samples = {
        "jpeg": encoded(picture, "JPEG", exif=_exif()),
        "jpeg-progressive": encoded(picture, "JPEG", progressive=True),
        "jpeg-cmyk": encoded(picture.convert("CMYK"), "JPEG"),
        "mpo": encoded(picture, "MPO", save_all=True, append_images=[picture]),
        "png": encoded(picture, "PNG", exif=_exif()),
        "png-palette": encoded(picture.convert("P"), "PNG", transparency=3),
        "png-16": encoded(deep, "PNG"),
        "png-alpha": encoded(clear, "PNG"),
        "apng": encoded(picture, "PNG", save_all=True, append_images=[clear]),
        "gif": encoded(picture, "GIF", save_all=True, append_images=[clear]),
        "webp": encoded(picture, "WEBP", exif=_exif()),
        "webp-lossless": encoded(clear, "WEBP", lossless=True),
        "tiff": encoded(picture, "TIFF", exif=_exif()),
        "tiff-16": encoded(deep, "TIFF"),
        "tiff-float": encoded(picture.convert("F"), "TIFF"),
        "tiff-lab": encoded(picture.convert("LAB"), "TIFF"),
        "bmp": encoded(picture, "BMP"),
        "bmp-palette": encoded(picture.convert("P"), "BMP"),
        "ppm": encoded(picture, "PPM"),
        "tga": encoded(clear, "TGA", compression="tga_rle"),
        "pcx": encoded(picture, "PCX"),
        "sgi": encoded(picture, "SGI"),
        "qoi": encoded(clear, "QOI"),
        "ico": encoded(clear, "ICO", sizes=[(16, 16)]),
        "ico-bmp": encoded(clear, "ICO", sizes=[(16, 16)], bitmap_format="bmp"),
        "dds": encoded(clear, "DDS", pixel_format="DXT5"),
        "jpeg2000": encoded(picture, "JPEG2000"),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        samples[f"tiff-{compression}"] = encoded(picture, "TIFF", compression=compression)
    samples["tiff-group4"] = encoded(picture.convert("1"), "TIFF", compression="group4")
    if features.check("avif"):
        samples["avif"] = encoded(clear, "AVIF")
    return samples


SAMPLES = _samples()


def _damage(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    way = chance.randrange(4)
    if way == 0:
        return data[: chance.randrange(len(data))]
    if way == 1:  # mostly in the header, which holds sizes and offsets
        reach = chance.choice([64, 300, len(data)])
        for _ in range(chance.choice([1, 3, 12])):
            value = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
            damaged[chance.randrange(min(reach, len(data)))] = value
    elif way == 2:
        start = chance.randrange(len(data))
        del damaged[start : start + chance.randrange(1, 40)]
    else:
        start = chance.randrange(len(data))
        damaged[start:start] = chance.randbytes(chance.randrange(1, 20))
    return bytes(damaged)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_damaged_file_is_a_picture_or_an_image_error(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(name)
    data = SAMPLES[name]
    assert opened(data, _LIMITS).mode == "RGB"

    refused = 0
    for _ in range(300):
        outcome = _outcome(_damage(data, chance))
        if isinstance(outcome, ImageError):
            refused += 1
            assert outcome.hint
            assert str(outcome).isprintable()
        else:
            assert (outcome.mode, list(outcome.info)) == ("RGB", ["original_size"])

    assert refused > 30
    if name != "avif":  # the decoder in Pillow's wheels before 12.2 writes to stderr
        assert capfd.readouterr() == ("", "")


def _outcome(data: bytes) -> Image.Image | ImageError:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return opened(data, _LIMITS)
        except ImageError as error:
            return error
