"""Colours below the transparent parts of pictures, by name or as `#rrggbb`."""

from __future__ import annotations

import difflib
import re

from PIL import Image, ImageChops, ImageColor

from idefics_cli.core.colours import WHITE, Colour
from idefics_cli.core.errors import UsageError


def parse_colour(text: str) -> Colour:
    """Return the colour with the name *text* in CSS, in any case, or that of `#rrggbb`.

    Raises:
        UsageError: If *text* is neither.
    """
    name = text.strip().lower()
    if not re.fullmatch("#[0-9a-f]{6}", name) and name not in ImageColor.colormap:
        close = difflib.get_close_matches(name, ImageColor.colormap, n=1)
        guess = f"did you mean `{close[0]}`?" if close else "such as black, gray or #1a2b3c"
        raise UsageError(f"`{text}` is not a colour", hint=guess)
    return ImageColor.getrgb(name)[:3]


def over_background(image: Image.Image, background: Colour) -> Image.Image:
    """Return *image*, which has transparency in any form, over *background* in RGB."""
    layer = image.convert("RGBA")
    below = Image.new("RGBA", layer.size, background)
    return Image.alpha_composite(below, layer).convert("RGB")


def from_white(image: Image.Image, background: Colour) -> Image.Image:
    """Return an RGBA *image* over *background*, if its colours are blended with white already.

    Blending is linear, so the part of white in each pixel is exchanged without a division.
    """
    if background == WHITE:
        return image.convert("RGB")
    clear = image.getchannel("A").point([255 - alpha for alpha in range(256)])
    bands = []
    for band, value in zip(image.convert("RGB").split(), background, strict=True):
        excess = clear.point([round(part * (255 - value) / 255) for part in range(256)])
        bands.append(ImageChops.subtract(band, excess))
    return Image.merge("RGB", bands)
