"""The pictures of scenes, drawn by Pillow with its built-in font."""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from idefics_cli.demo.scenes import BACKGROUNDS, COLORS, Lettering, Rgb, Scene, SceneObject

Point = tuple[float, float]
_FONT_SIZE = 96
_NOISE_EDGE = 500


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn picture, and where its text is.

    Attributes:
        image: RGB image.
        text_box: Left, top, right and bottom of the text in pixels; None without text.
        letter_edges: Positions before the first letter, between the letters and after the last
            one, in pixels from the left edge of the picture; empty without text.
    """

    image: Image.Image
    text_box: tuple[int, int, int, int] | None = None
    letter_edges: tuple[float, ...] = ()


def draw(scene: Scene, *, jpeg: bool = False) -> Drawing:
    """Draw *scene*; see `render` for *jpeg*."""
    rng = random.Random(scene.seed)
    shade = _shade(rng, BACKGROUNDS[scene.background], spread=10)
    image = Image.new("RGB", (scene.width, scene.height), shade)
    text_box = None
    letter_edges: tuple[float, ...] = ()
    if scene.lettering is not None:
        text_box, letter_edges = _draw_text(image, scene.lettering, rng)
    else:
        canvas = ImageDraw.Draw(image)
        for thing in scene.objects:
            _draw_shape(canvas, thing, rng)
    if rng.random() < 0.5:
        image = _with_noise(image, rng)
    if rng.random() < 0.3 and jpeg:
        image = _through_jpeg(image, quality=rng.randint(35, 90))
    return Drawing(image, text_box, letter_edges)


def _shade(rng: random.Random, color: Rgb, *, spread: int = 14) -> Rgb:
    red, green, blue = (min(255, max(0, v + rng.randint(-spread, spread))) for v in color)
    return red, green, blue


def _draw_shape(canvas: ImageDraw.ImageDraw, thing: SceneObject, rng: random.Random) -> None:
    shade = _shade(rng, COLORS[thing.color])
    x, y, r = thing.x, thing.y, thing.radius
    if thing.shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=shade)
        return
    tilt = rng.uniform(-0.17, 0.17)
    sine, cosine = math.sin(tilt), math.cos(tilt)
    turned = [
        (x + (px * cosine - py * sine) * r, y + (px * sine + py * cosine) * r)
        for px, py in _outline(thing.shape)
    ]
    canvas.polygon(turned, fill=shade)


@cache
def _outline(shape: str) -> tuple[Point, ...]:
    """Return the corners of *shape* in a circle of radius 1 at the origin; y points down."""
    if shape == "square":
        return ((-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82))
    if shape == "triangle":
        return ((0, -1), (0.95, 0.75), (-0.95, 0.75))
    if shape == "star":
        return tuple(_star_corner(k) for k in range(10))
    if shape == "cross":
        w = 0.32
        arm = ((-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w))
        return arm + tuple((-px, -py) for px, py in arm)
    if shape == "heart":
        return tuple(_heart_point(k * 2 * math.pi / 40) for k in range(40))
    raise ValueError(f"no outline for {shape!r}")


def _star_corner(k: int) -> Point:
    reach = 1 if k % 2 == 0 else 0.42
    return reach * math.sin(k * math.pi / 5), -reach * math.cos(k * math.pi / 5)


def _heart_point(t: float) -> Point:
    # This is the heart curve of MathWorld (equation 5), scaled to fit into the unit circle.
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return 0.94 * math.sin(t) ** 3, -y / 16.5


def _draw_text(
    image: Image.Image, lettering: Lettering, rng: random.Random
) -> tuple[tuple[int, int, int, int], tuple[float, ...]]:
    """Draw the text, stretched and sometimes tilted; return its box and its letter edges."""
    shade = _shade(rng, COLORS[lettering.color])
    stroke = rng.choice([0, 0, 1, 3, 4])
    mask, edges = _text_mask(lettering.text, stroke)
    stretch = rng.uniform(0.8, 1.25)
    tilt = rng.uniform(-8, 8) if rng.random() < 0.5 else 0.0
    width, height = _text_size(image.size, mask.size, stretch, lettering.text, rng)
    mask = mask.resize((width, height), Image.Resampling.BILINEAR)
    if tilt:
        mask = mask.rotate(tilt, Image.Resampling.BILINEAR, expand=True)
    x = round(_place(image.width, mask.width, rng))
    y = round(_place(image.height, mask.height, rng))
    image.paste(Image.new("RGB", mask.size, shade), (x, y), mask)
    left = x + (mask.width - width) / 2
    box = (x, y, x + mask.width, y + mask.height)
    return box, tuple(left + edge * width for edge in edges)


def _text_mask(text: str, stroke: int) -> tuple[Image.Image, list[float]]:
    """Return the text in white on black, and its letter edges as shares of the mask's width."""
    font = _font()
    probe = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = probe.textbbox((0, 0), text, font=font, stroke_width=stroke)
    mask = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4), 0)
    pen = ImageDraw.Draw(mask)
    pen.text((2 - left, 2 - top), text, fill=255, font=font, stroke_width=stroke)
    widths = [font.getlength(text[:k]) for k in range(len(text) + 1)]
    return mask, [(width - left + 2) / mask.width for width in widths]


def _text_size(
    picture: tuple[int, int],
    mask: tuple[int, int],
    stretch: float,
    text: str,
    rng: random.Random,
) -> tuple[int, int]:
    """Return the width and height to which the mask is scaled; it fills much of the picture."""
    width, height = picture
    stretched = mask[0] * stretch
    # The mask has a margin of 2 pixels on each side, so it is 4 pixels higher than the letters.
    letters = mask[1] - 4
    if len(text) == 1:
        scale = min(width, height) * rng.uniform(0.5, 0.8) / letters
    else:
        scale = min(width * rng.uniform(0.6, 0.9) / stretched, height * 0.75 / letters)
    scale = min(scale, width * 0.9 / stretched, height * 0.8 / letters)
    return max(4, round(stretched * scale)), max(4, round(mask[1] * scale))


def _place(room: int, taken: int, rng: random.Random) -> float:
    free = room - taken
    return free / 2 + rng.uniform(-0.5, 0.5) * max(0, free)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return Pillow's built-in scalable font, which is the same on all machines."""
    built_in = ImageFont.load_default(size=20)
    if not isinstance(built_in, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType")
    # The layout engine is always the basic one. Pillow with libraqm would use that library, which
    # may place the same text differently.
    return ImageFont.truetype(
        io.BytesIO(built_in.font_bytes), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC
    )


def _with_noise(image: Image.Image, rng: random.Random) -> Image.Image:
    strength = rng.uniform(2, 9)
    top = rng.randrange(_NOISE_EDGE - image.height)
    left = rng.randrange(_NOISE_EDGE - image.width)
    noise = _noise_field()[top : top + image.height, left : left + image.width]
    noisy = np.asarray(image, np.float32) + strength * noise
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@cache
def _noise_field() -> NDArray[np.float32]:
    # numpy guarantees that RandomState gives the same numbers in every version (NEP 19). It does
    # not guarantee this for Generator.
    field = np.random.RandomState(0).normal(0, 1, (_NOISE_EDGE, _NOISE_EDGE, 3))
    return field.astype(np.float32)


def _through_jpeg(image: Image.Image, *, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as compressed:
        return compressed.convert("RGB")


def render(scene: Scene, *, jpeg: bool = False) -> Image.Image:
    """Draw *scene* as an RGB picture, with the same pixels in Pillow 11.3 to 13.0.

    Args:
        scene: Scene to draw.
        jpeg: Whether 3 of 10 pictures are compressed with lossy JPEG, as in training.
    """
    return draw(scene, jpeg=jpeg).image
