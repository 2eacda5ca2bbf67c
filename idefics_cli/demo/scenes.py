"""Scenes, the contents of the drawn pictures. A seed gives the same scene on every machine.

A scene shows one to three coloured shapes, or a digit or short word, on a coloured background.

The built-in model was trained on these scenes, so the order of the random draws must stay. Another
order gives other scenes for the same seeds, and the hashes in the tests would differ.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Rgb = tuple[int, int, int]
Kind = Literal["shapes", "text"]
Pairs = Literal["train", "held"]
Split = Literal["train", "combo", "pair"]
"""`train` has the scenes of the training. `combo` has scenes with combinations of things and
background that no training picture shows. `pair` has scenes in which each object has a colour and a
shape of `HELD_PAIRS`."""

COLORS: Mapping[str, Rgb] = MappingProxyType(
    {
        "red": (220, 30, 35),
        "green": (35, 160, 60),
        "blue": (40, 75, 220),
        "yellow": (245, 215, 40),
        "purple": (140, 50, 170),
        "orange": (245, 135, 25),
        "black": (18, 18, 20),
        "white": (246, 246, 244),
    }
)
BACKGROUNDS: Mapping[str, Rgb] = MappingProxyType(
    {
        "white": (250, 250, 250),
        "black": (12, 12, 14),
        "gray": (135, 138, 140),
        "pink": (250, 190, 205),
        "blue": (60, 100, 225),
        "green": (60, 170, 85),
        "yellow": (250, 225, 90),
    }
)
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
DIGITS = tuple("0123456789")
WORDS = (
    "hello",
    "cat",
    "dog",
    "stop",
    "open",
    "sun",
    "moon",
    "yes",
    "no",
    "fish",
    "home",
    "book",
)
HELD_PAIRS = frozenset(
    {
        ("red", "star"),
        ("blue", "heart"),
        ("green", "circle"),
        ("yellow", "cross"),
        ("purple", "square"),
    }
)
"""Pairs of colour and shape that no training picture shows."""

_CELLS = [(row, column) for row in range(3) for column in range(3)]
_ONE_TO_THREE = [1, 2, 2, 3]


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape.

    Attributes:
        color: Key of `COLORS`.
        shape: One of `SHAPES`.
        row: Row in the 3x3 grid, from the top.
        column: Column in the 3x3 grid, from the left.
        is_large: Whether it is large; every large shape is clearly larger than a small one.
        radius: Radius in pixels.
        x: Distance of the centre from the left edge, in pixels.
        y: Distance of the centre from the top edge, in pixels.
    """

    color: str
    shape: str
    row: int
    column: int
    is_large: bool
    radius: float
    x: float
    y: float

    @property
    def name(self) -> str:
        """Colour and shape, such as "red star"."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Lettering:
    """A digit or one of `WORDS`, and its colour."""

    text: str
    color: str

    @property
    def noun(self) -> str:
        """The kind of the text: "digit" or "word"."""
        return "digit" if self.text.isdigit() else "word"


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of a picture: either objects or lettering.

    Attributes:
        background: Key of `BACKGROUNDS`.
        width: Width in pixels.
        height: Height in pixels.
        seed: Seed of everything that no question asks about: shades, tilt, noise.
        objects: One to three shapes that differ in colour or shape, sorted by row and then by
            column; empty if the scene has lettering.
        lettering: The text; None if the scene has objects.
    """

    background: str
    width: int
    height: int
    seed: int
    objects: tuple[SceneObject, ...] = ()
    lettering: Lettering | None = None

    @property
    def combination(self) -> str:
        """The things and the background, without their places; see `is_held_out`."""
        if self.lettering is not None:
            things = f"{self.lettering.text} {self.lettering.color}"
        else:
            things = "|".join(sorted(thing.name for thing in self.objects))
        return f"{things}@{self.background}"

    @property
    def is_held_out(self) -> bool:
        """Whether training leaves out this combination. That is so for one in ten."""
        return zlib.crc32(self.combination.encode()) % 10 == 0


def scene_for_split(split: Split, seed: int) -> Scene:
    """Return scene number *seed* of *split*; the same call gives the same scene."""
    # random.Random hashes a string with SHA-512. So the same string gives the same numbers on all
    # machines and in all versions of Python.
    rng = random.Random(f"{split}-{seed}")
    if split == "pair":
        # The count is drawn before anything else, because another order of draws gives other
        # scenes.
        return make_scene(rng, kind="shapes", pairs="held", count=rng.choice(_ONE_TO_THREE))
    while True:
        scene = make_scene(rng, pairs="train")
        if scene.is_held_out == (split == "combo"):
            return scene


def make_scene(
    rng: random.Random,
    *,
    kind: Kind | None = None,
    count: int | None = None,
    pairs: Pairs | None = None,
) -> Scene:
    """Draw a scene from *rng*.

    Args:
        rng: Source of every choice.
        kind: Shapes or text; None draws text in 3 of 10 scenes.
        count: Number of objects; None draws 1 to 3.
        pairs: `train` excludes `HELD_PAIRS`, `held` allows only them, None allows all pairs.
    """
    if kind is None:
        kind = "text" if rng.random() < 0.30 else "shapes"
    background = rng.choice(tuple(BACKGROUNDS))
    width, height = _draw_size(rng)
    seed = rng.getrandbits(31)
    if kind == "text":
        color = rng.choice([name for name in COLORS if name != background])
        is_digit = rng.random() < 0.5
        text = str(rng.randint(0, 9)) if is_digit else rng.choice(WORDS)
        return Scene(background, width, height, seed, lettering=Lettering(text, color))
    if count is None:
        count = rng.choice(_ONE_TO_THREE)
    objects = _draw_objects(rng, width, height, _allowed(background, pairs), count)
    return Scene(background, width, height, seed, objects=objects)


def caption(scene: Scene) -> str:
    """Return the only right caption of *scene*."""
    tail = f"on a {scene.background} background."
    if scene.lettering is not None:
        text = scene.lettering
        return f"The {text.noun} {text.text} in {text.color} {tail}"
    names = [with_article(thing.name) for thing in scene.objects]
    first = scene.objects[0]
    if len(names) == 1:
        size = with_article("large" if first.is_large else "small")
        return capitalized(f"{size} {first.name} {tail}")
    if len(names) == 2:
        relation = "above" if first.row < scene.objects[1].row else "to the left of"
        return capitalized(f"{names[0]} {relation} {names[1]} {tail}")
    return capitalized(f"{names[0]}, {names[1]} and {names[2]} {tail}")


def with_article(words: str) -> str:
    """Return *words* after "a" or "an"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def capitalized(sentence: str) -> str:
    """Return *sentence* with a capital first letter and the rest unchanged."""
    return sentence[0].upper() + sentence[1:]


def _draw_size(rng: random.Random) -> tuple[int, int]:
    """Return a width and a height: the long edge has 150 to 300 pixels, the shape is 2:3 to 3:2."""
    long_edge = rng.randint(150, 300)
    aspect = math.exp(rng.uniform(math.log(0.67), math.log(1.5)))
    if aspect >= 1:
        return long_edge, int(long_edge / aspect)
    return int(long_edge * aspect), long_edge


def _allowed(background: str, pairs: Pairs | None) -> list[tuple[str, str]]:
    """Return the pairs of colour and shape that are allowed on *background*."""
    every = [(color, shape) for color in COLORS for shape in SHAPES if color != background]
    if pairs is None:
        return every
    return [pair for pair in every if (pair in HELD_PAIRS) == (pairs == "held")]


def _draw_objects(
    rng: random.Random, width: int, height: int, allowed: list[tuple[str, str]], count: int
) -> tuple[SceneObject, ...]:
    """Draw *count* objects of different pairs in different cells; repeat until none touch."""
    while True:
        chosen = rng.sample(allowed, count)
        cells = rng.sample(_CELLS, count)
        objects = [
            _draw_object(rng, width, height, pair, cell)
            for pair, cell in zip(chosen, cells, strict=True)
        ]
        if all(_are_apart(a, b) for i, a in enumerate(objects) for b in objects[:i]):
            return tuple(sorted(objects, key=lambda thing: (thing.row, thing.column)))


def _draw_object(
    rng: random.Random, width: int, height: int, pair: tuple[str, str], cell: tuple[int, int]
) -> SceneObject:
    """Draw a size, and a place near the middle of *cell* and inside the picture."""
    row, column = cell
    is_large = rng.random() < 0.5
    share = rng.uniform(0.19, 0.235) if is_large else rng.uniform(0.11, 0.14)
    radius = min(width, height) * share
    x = (1 / 6 + column / 3 + rng.uniform(-0.05, 0.05)) * width
    y = (1 / 6 + row / 3 + rng.uniform(-0.05, 0.05)) * height
    margin = radius * 1.06
    x = min(max(x, margin), width - margin)
    y = min(max(y, margin), height - margin)
    return SceneObject(*pair, row, column, is_large, radius, x, y)


def _are_apart(a: SceneObject, b: SceneObject) -> bool:
    return math.hypot(a.x - b.x, a.y - b.y) > (a.radius + b.radius) * 1.04
