"""The conversion of a decoded image of any mode to an upright RGB image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from idefics_cli.images.colour import to_srgb, tone_mapped
from idefics_cli.images.facts import PixelFacts

# Orientation -> the operation that undoes it (EXIF 2.32, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_PLAIN = PixelFacts()
_BAND_PIXELS = 1 << 20


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image, 1 to 8; 1 if it has none.

    Pillow turns TIFF files while it loads them, and sets their orientation to 1.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        # Any program may have written the metadata, so Pillow's parser raises nearly every
        # built-in error. A picture with broken metadata is still a picture.
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def is_sideways(image: Image.Image) -> bool:
    """Return whether the orientation of *image* swaps its width and height."""
    return exif_orientation(image) >= 5


def show_first_visible(image: Image.Image) -> None:
    """Go to the first frame of a loaded animation that is not wholly transparent.

    Only the first `_MOST_CLEAR_FRAMES` frames are tried.
    """
    for frame in range(1, _MOST_CLEAR_FRAMES):
        if not _is_clear_animation(image):
            return
        try:
            image.seek(frame)
            image.load()
        except Exception:  # damaged later frames do not matter; see `exif_orientation`
            image.seek(0)
            return


_MOST_CLEAR_FRAMES = 8


def _is_clear_animation(image: Image.Image) -> bool:
    # Further frames of a Photoshop file are its layers, and those of a TIFF file are its pages. So
    # only the formats of animations count.
    if image.format not in ("GIF", "PNG", "WEBP") or not image.has_transparency_data:
        return False
    is_animated = getattr(image, "is_animated", False)
    return is_animated and image.convert("RGBA").getchannel("A").getbbox() is None


def upright_rgb(image: Image.Image, facts: PixelFacts = _PLAIN) -> Image.Image:
    """Return a loaded image of any mode as a new RGB image, upright and without metadata.

    Args:
        image: The image.
        facts: How to read the pixels of the image.
    """
    turn = _UPRIGHT.get(exif_orientation(image))
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image, facts)
    if facts.transfer == 0:
        image = to_srgb(image)
    has_alpha = facts.has_alpha and image.has_transparency_data
    upright = _over_white(image) if has_alpha else image.convert("RGB")
    if facts.transfer:
        upright = tone_mapped(upright, facts.transfer, facts.primaries)
    if facts.frame is not None:
        canvas = Image.new("RGB", upright.size, "white")
        canvas.paste(upright.crop(facts.frame), facts.frame[:2])
        upright = canvas
    if turn is not None:
        upright = upright.transpose(turn)
    upright.info = {}
    return upright


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return *image*, which comes from the loader, turned upright from an EXIF *orientation*."""
    turn = _UPRIGHT.get(orientation)
    if turn is None:
        return image
    upright = image.transpose(turn)
    width, height = image.info["original_size"]
    upright.info["original_size"] = (height, width) if orientation >= 5 else (width, height)
    return upright


def _over_white(image: Image.Image) -> Image.Image:
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        # This is the colour key of a 16-bit PNG, whose samples Pillow has cut to 8 bits.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.mode == "La":  # Pillow cannot convert these to RGBA in one step
        image = image.convert("LA")
    if image.width * image.height <= _BAND_PIXELS:
        return _flattened(image)
    seen = Image.new("RGB", image.size)
    for box in _bands(*image.size):
        seen.paste(_flattened(image.crop(box)), box)
    return seen


def _flattened(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _bands(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes that divide an image into bands of rows.

    Band by band, intermediate copies take little memory.
    """
    rows = max(1, _BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield 0, top, width, min(height, top + rows)


def _eight_bits(image: Image.Image, facts: PixelFacts) -> Image.Image:
    """Convert a grey image of 16 bits, 32 bits or floats to `L`. A colour key becomes white."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = (values >> (facts.grey_bits - 8)).astype(np.uint8)
    elif image.mode == "I":
        values = values.view(np.uint32) if facts.is_unsigned else values
        grey = _from_integers(values, sixteen=image.format == "PPM")
    else:
        grey = _from_floats(values)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    elif facts.is_white_zero:
        grey = 255 - grey
    eight = Image.fromarray(grey)
    eight.info = {k: v for k, v in image.info.items() if k == "icc_profile"}
    return eight


def _from_integers(
    values: NDArray[np.int32] | NDArray[np.uint32], *, sixteen: bool
) -> NDArray[np.uint8]:
    low, high = int(values.min()), int(values.max())
    # Pillow scales a PNM of more than 8 bits to 0..65535. A TIFF does not define its range, so its
    # largest value decides.
    if low >= 0 and high <= 65535 and (sixteen or high > 255):
        return (values >> 8).astype(np.uint8)
    if low >= 0 and high <= 255:
        return values.astype(np.uint8)
    if low >= 0 and high >= 2**31:  # unsigned, and the highest bit is used
        return (values >> 24).astype(np.uint8)
    return _stretched(values, low, high)


def _from_floats(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = np.inf, -np.inf
    for _, top, _, bottom in _bands(values.shape[1], values.shape[0]):
        finite = values[top:bottom][np.isfinite(values[top:bottom])]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        return np.zeros(values.shape, np.uint8)
    if low >= 0 and high <= 1:
        return _stretched(values, 0, 1, low, high)
    if low >= 0 and high <= 255:
        return _stretched(values, 0, 255, low, high)
    return _stretched(values, low, high)


def _stretched(
    values: NDArray[np.int32] | NDArray[np.uint32] | NDArray[np.float32],
    black: float,
    white: float,
    low: float | None = None,
    high: float | None = None,
) -> NDArray[np.uint8]:
    """Return *values*, scaled so that *black* becomes 0 and *white* becomes 255.

    Infinite values count as *low* and *high*, by default *black* and *white*. NaN counts as *low*.
    Viewers also show data such as heights or temperatures with their range from black to white.
    """
    low, high = black if low is None else low, white if high is None else high
    stretched = np.empty(values.shape, np.uint8)
    for _, top, _, bottom in _bands(values.shape[1], values.shape[0]):
        band = np.nan_to_num(
            values[top:bottom].astype(np.float64), nan=low, posinf=high, neginf=low
        )
        stretched[top:bottom] = np.rint((band - black) / ((white - black) or 1) * 255)
    return stretched
