"""Conversion of colours to sRGB: ICC profiles, and high dynamic range."""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

# A profile counts as sRGB if it changes no value of a test grid by more than this (of 255).
_LEAST_DIFFERENCE = 4
_SPACES = {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_SCREEN_GAMMA, _GAMMA_TOLERANCE = 2.2, 0.05
_ROWS_PIXELS = 1 << 20  # pixels that are converted at a time

PQ, HLG = 16, 18
"""Transfer characteristics of high dynamic range (ITU-T H.273, table 3)."""


def to_srgb(image: Image.Image) -> Image.Image:
    """Return *image* in sRGB, converted by its ICC profile if that makes a visible difference.

    Args:
        image: A loaded image of any mode of 8 bits. If possible, it is changed in place.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return _with_gamma(image)
    if image.mode == "P":
        plain: Image.Image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    else:
        plain = image.getchannel("L") if image.mode == "LA" else image
    if plain.mode not in _SPACES or (plain.mode == "RGB" and "transparency" in image.info):
        return image  # a colour key would no longer match its colour after a conversion
    transform = _transform(profile, plain.mode)
    if transform is None:
        return image
    if plain.mode in ("RGB", "RGBA"):
        ImageCms.applyTransform(plain, transform, inPlace=True)
        return plain
    converted = ImageCms.applyTransform(plain, transform)
    if converted is None:
        return image
    if image.mode == "LA":
        converted.putalpha(image.getchannel("A"))
    if "exif" in image.info:
        converted.info["exif"] = image.info["exif"]
    return converted


def _with_gamma(image: Image.Image) -> Image.Image:
    """Return *image* by the gAMA chunk of a PNG, if it has neither a profile nor sRGB."""
    gamma = image.info.get("gamma")
    if not isinstance(gamma, float) or "srgb" in image.info or image.mode == "1":
        return image
    # libpng, too, changes nothing if gamma differs by less than 5 %, which is not visible.
    if gamma <= 0 or abs(gamma * _SCREEN_GAMMA - 1) <= _GAMMA_TOLERANCE:
        return image
    if image.mode not in ("L", "LA", "RGB", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    linear = (np.arange(256) / 255) ** (1 / gamma)
    table = np.rint(_encoded(linear) * 255).astype(int).tolist()
    kept = list(range(256))
    return image.point(
        [value for band in image.getbands() for value in (kept if band == "A" else table)]
    )


def _encoded(linear: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return linear light from 0 to 1 in the transfer function of sRGB."""
    encoded: NDArray[np.floating] = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    return encoded


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion to sRGB; None if the profile is broken, unfit or nearly sRGB."""
    output = "RGBA" if mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, output, ImageCms.Intent.PERCEPTUAL
        )
        sample = _grid(mode)
        converted = ImageCms.applyTransform(sample, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if converted is None:
        return None
    before, after = (np.asarray(im.convert("RGB"), np.int16) for im in (sample, converted))
    return transform if np.abs(after - before).max() > _LEAST_DIFFERENCE else None


def _grid(mode: str) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    if bands == 1:
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    values = list(product(range(0, 256, 51), repeat=bands))
    image = Image.new(mode, (len(values), 1))
    image.putdata([tuple(value) for value in values])
    return image


# High dynamic range ------------------------------------------------------------------------------

_WHITE_NITS = 203.0  # ITU-R BT.2408: the white of graphics
_PEAK_NITS = 1000.0
_KNEE = 0.75  # linear light above this share of white is compressed
# Matrices that convert to the primaries of sRGB, by the number of the primaries in H.273, table 2:
# 9 is BT.2020, and 12 is Display P3.
_MATRICES = {
    9: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    12: ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),
}


def tone_mapped(image: Image.Image, transfer: int, primaries: int) -> Image.Image:
    """Convert an RGB image of high dynamic range (HDR) to one for screens of standard range.

    Args:
        image: The samples as stored.
        transfer: `PQ` or `HLG`.
        primaries: Colour primaries (ITU-T H.273, table 2).
    """
    light = _light_of_codes(transfer)
    mapped = Image.new("RGB", image.size)
    rows = max(1, _ROWS_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        piece = image.crop((0, top, image.width, min(image.height, top + rows)))
        mapped.paste(
            Image.fromarray(_mapped(np.asarray(piece), light, transfer, primaries)), (0, top)
        )
    return mapped


def _mapped(
    codes: NDArray[np.uint8], light: NDArray[np.float32], transfer: int, primaries: int
) -> NDArray[np.uint8]:
    linear = light[codes]
    if transfer == HLG:  # the system gamma of a display of 1000 nits (BT.2100)
        luminance = linear @ np.array((0.2627, 0.6780, 0.0593), np.float32)
        linear *= (_PEAK_NITS / _WHITE_NITS) * luminance[..., None] ** np.float32(0.2)
    if primaries in _MATRICES:
        linear = linear @ np.array(_MATRICES[primaries], np.float32).T
    linear = np.maximum(linear, 0)
    brightest = linear.max(axis=-1, keepdims=True)
    above = np.maximum(brightest - _KNEE, 0) / (1 - _KNEE)
    most = (_PEAK_NITS / _WHITE_NITS - _KNEE) / (1 - _KNEE)
    compressed = _KNEE + (1 - _KNEE) * above * (1 + above / most**2) / (1 + above)
    scale = np.where(brightest > _KNEE, compressed / np.maximum(brightest, 1e-6), 1)
    linear = np.clip(linear * scale, 0, 1)
    pixels: NDArray[np.uint8] = np.rint(_encoded(linear) * 255).astype(np.uint8)
    return pixels


@lru_cache(maxsize=2)
def _light_of_codes(transfer: int) -> NDArray[np.float32]:
    """Return the linear light of each code (BT.2100).

    For PQ, 1 is white. For HLG, it is the light of the scene.
    """
    codes = np.arange(256) / 255
    if transfer == PQ:
        power = codes ** (1 / 78.84375)
        base = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        return (10_000 / _WHITE_NITS * base ** (1 / 0.1593017578125)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - c) / a) + b) / 12)
    return light.astype(np.float32)
