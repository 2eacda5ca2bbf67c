"""The conversion of a decoded image of any mode to an upright RGB image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageFile

from idefics_cli.core.colours import WHITE, Colour
from idefics_cli.images.background import from_white, over_background
from idefics_cli.images.colour import to_srgb, tone_mapped
from idefics_cli.images.facts import PixelFacts

# The operation that turns a picture upright, by its orientation (EXIF 2.32, tag 0x0112).
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

LARGE_PIXELS = 32_000_000
"""A picture with more pixels is converted in bands, because its copies would fill the memory."""


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


def load_pixels(image: ImageFile.ImageFile) -> Image.Image:
    """Load an image; return it, or its first frame in less memory.

    libwebp has three pictures of the canvas, and Pillow has two more of each frame. A large WebP
    needs none of them once its first frame is decoded.
    """
    decoder = getattr(image, "_decoder", None)
    if image.format != "WEBP" or image.width * image.height <= LARGE_PIXELS or decoder is None:
        image.load()
        return image
    frame = decoder.get_next()
    if frame is None:
        raise EOFError("failed to decode the picture")
    image._decoder = None  # type: ignore[attr-defined]  # frees its memory
    mode = "RGBA" if image.mode == "RGBA" else "RGBX"
    pixels = Image.frombuffer(mode, image.size, frame[0], "raw", mode, 0, 1)
    pixels.info = dict(image.info)
    return pixels


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


def upright_rgb(
    image: Image.Image,
    facts: PixelFacts = _PLAIN,
    *,
    factor: int = 1,
    background: Colour = WHITE,
) -> Image.Image:
    """Return a loaded image of any mode as a new RGB image, upright and without metadata.

    Args:
        image: The image. The new image may share its pixels, so neither may be changed later.
        facts: How to read the pixels of the image.
        factor: The image is reduced by this factor; each pixel is the mean of a square.
        background: The colour below transparent pixels.
    """
    turn = _UPRIGHT.get(exif_orientation(image))
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image, facts)
    if facts.may_be_blended and not (image.mode == "RGBA" and _is_over_white(image)):
        facts = replace(facts, may_be_blended=False)
    if facts.may_be_unset and image.mode == "RGBA" and image.getchannel("A").getbbox() is None:
        facts = replace(facts, has_alpha=False)
    if image.width * image.height > LARGE_PIXELS:
        upright = _rgb_in_bands(image, facts, factor, background)
    else:
        upright = _rgb(image, facts, background)
        upright = upright.reduce(factor) if factor > 1 else upright
    if facts.frame is not None:
        left, top, right, bottom = (edge // factor for edge in facts.frame)
        canvas = Image.new("RGB", upright.size, background)
        canvas.paste(upright.crop((left, top, right, bottom)), (left, top))
        upright = canvas
    if turn is not None:
        upright = upright.transpose(turn)
    upright.info = {}
    return upright


def _rgb(image: Image.Image, facts: PixelFacts, background: Colour) -> Image.Image:
    """Return an image of 8 bits in RGB, over *background* and in the colours of a screen."""
    image = _tone_mapped(image, facts) if facts.transfer else to_srgb(image)
    if facts.may_be_blended:
        return from_white(image, background)
    has_alpha = facts.has_alpha and image.has_transparency_data
    if has_alpha:
        return _over(image, background)
    # `convert` would copy an RGB image. For a picture of 0.6 million pixels, that takes a sixth of
    # the time of decoding it.
    is_plain = image.mode == "RGB" and not image.readonly
    return image._new(image.im) if is_plain else image.convert("RGB")


def _tone_mapped(image: Image.Image, facts: PixelFacts) -> Image.Image:
    mapped = tone_mapped(image.convert("RGB"), facts.transfer, facts.primaries)
    if image.has_transparency_data:
        mapped.putalpha(image.convert("RGBA").getchannel("A"))
    return mapped


def _rgb_in_bands(
    image: Image.Image, facts: PixelFacts, factor: int, background: Colour
) -> Image.Image:
    """Return what `_rgb` returns, reduced by *factor*.

    The image is converted band by band, so that copies hold only one band of rows at a time.
    """
    size = (-(-image.width // factor), -(-image.height // factor))
    seen = Image.new("RGB", size)
    for box in _bands(*image.size, multiple=factor):
        band = _rgb(image.crop(box), facts, background)
        seen.paste(band.reduce(factor) if factor > 1 else band, (0, box[1] // factor))
    return seen


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return *image*, which comes from the loader, turned upright from an EXIF *orientation*."""
    turn = _UPRIGHT.get(orientation)
    if turn is None:
        return image
    upright = image.transpose(turn)
    width, height = image.info["original_size"]
    upright.info["original_size"] = (height, width) if orientation >= 5 else (width, height)
    return upright


def _is_over_white(image: Image.Image) -> bool:
    """Return whether the colours of an RGBA image can be blended with white already.

    Photoshop blends those of its merged picture. Then what is half clear is at least half white.
    """
    for box in _bands(*image.size):
        *colours, alpha = image.crop(box).split()
        for colour in colours:
            lightest, _ = ImageChops.add(colour, alpha).getextrema()
            if isinstance(lightest, tuple) or lightest < 255 - _BLENDING_ERROR:
                return False
    return True


_BLENDING_ERROR = 3
_COLOUR_FACTS = ("icc_profile", "gamma", "srgb")


def _over(image: Image.Image, background: Colour) -> Image.Image:
    if image.mode == "La":  # Pillow cannot convert these to RGBA in one step
        image = image.convert("LA")
    if image.width * image.height <= _BAND_PIXELS:
        return over_background(image, background)
    seen = Image.new("RGB", image.size)
    for box in _bands(*image.size):
        seen.paste(over_background(image.crop(box), background), box)
    return seen


def _bands(width: int, height: int, multiple: int = 1) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes that divide an image into bands of rows.

    Band by band, intermediate copies take little memory.

    Args:
        width: Width of the image in pixels.
        height: Height of the image.
        multiple: The number of rows of a band, except the last, is a multiple of this.
    """
    rows = max(1, _BAND_PIXELS // max(1, width) // multiple) * multiple
    for top in range(0, height, rows):
        yield 0, top, width, min(height, top + rows)


Samples = NDArray[np.uint16] | NDArray[np.int32] | NDArray[np.uint32] | NDArray[np.float32]


def _eight_bits(image: Image.Image, facts: PixelFacts) -> Image.Image:
    """Convert a grey image of 16 bits, 32 bits or floats to `L`; to `LA` if it has a colour key."""
    low, high = (0, 65535) if image.mode.startswith("I;16") else _range(image, facts)
    key = image.info.get("transparency")
    eight = Image.new("LA" if isinstance(key, int) else "L", image.size)
    for box in _bands(*image.size):
        values = _samples(image, box, facts)
        if image.mode.startswith("I;16"):
            grey = (values.astype(np.uint16) >> (facts.grey_bits - 8)).astype(np.uint8)
        elif image.mode == "I":
            # Pillow scales a PNM of more than 8 bits to 0..65535; a TIFF does not define its range.
            grey = _from_integers(values, low, high, sixteen=image.format == "PPM")
        else:
            grey = _from_floats(values, low, high)
        if isinstance(key, int):
            grey = np.stack((grey, np.where(values == key, 0, 255).astype(np.uint8)), axis=-1)
        elif facts.is_white_zero:
            grey = 255 - grey
        eight.paste(Image.fromarray(grey), box)
    eight.info = {k: v for k, v in image.info.items() if k in _COLOUR_FACTS}
    return eight


def _samples(image: Image.Image, box: tuple[int, int, int, int], facts: PixelFacts) -> Samples:
    values: Samples = np.asarray(image.crop(box))
    return values.view(np.uint32) if image.mode == "I" and facts.is_unsigned else values


def _range(image: Image.Image, facts: PixelFacts) -> tuple[float, float]:
    """Return the smallest and the largest finite sample; (inf, -inf) if no sample is finite."""
    low, high = np.inf, -np.inf
    for box in _bands(*image.size):
        values = _samples(image, box, facts)
        finite = values[np.isfinite(values)] if image.mode == "F" else values
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return low, high


def _from_integers(values: Samples, low: float, high: float, *, sixteen: bool) -> NDArray[np.uint8]:
    integers = values.astype(np.int64)
    if low >= 0 and high <= 65535 and (sixteen or high > 255):
        return (integers >> 8).astype(np.uint8)
    if low >= 0 and high <= 255:
        return integers.astype(np.uint8)
    if low >= 0 and high >= 2**31:  # unsigned, and the highest bit is used
        return (integers >> 24).astype(np.uint8)
    return _stretched(values, low, high, low, high)


def _from_floats(values: Samples, low: float, high: float) -> NDArray[np.uint8]:
    if low > high:
        return np.zeros(values.shape, np.uint8)
    # Samples from 0 to 1, or from 0 to 255, are brightness. Other samples are data such as heights
    # or temperatures: the lowest value becomes black and the highest white, as in viewers.
    black, white = low, high
    if low >= 0 and high <= 255:
        black, white = 0.0, 1.0 if high <= 1 else 255.0
    return _stretched(values, black, white, low, high)


def _stretched(
    values: Samples, black: float, white: float, low: float, high: float
) -> NDArray[np.uint8]:
    """Return *values*, scaled so that *black* becomes 0 and *white* becomes 255.

    Infinite values count as *low* and *high*, and NaN counts as *low*. Viewers also show data such
    as heights or temperatures with their range from black to white.
    """
    finite = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    stretched: NDArray[np.uint8] = np.rint((finite - black) / ((white - black) or 1) * 255).astype(
        np.uint8
    )
    return stretched
