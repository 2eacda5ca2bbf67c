"""Pictures to measure with.

They are drawn from seeds, so that all are different, and each can be drawn again.
"""

from __future__ import annotations

import random
from pathlib import Path

Size = tuple[int, int]

# Width and height of the pictures of a benchmark. The sizes are typical of photos, screenshots,
# portraits, a panorama and a thumbnail.
MIXED: tuple[Size, ...] = (
    (980, 653),
    (653, 980),
    (980, 735),
    (640, 480),
    (980, 551),
    (480, 480),
    (980, 420),
    (735, 980),
)


class Studio:
    """Draws pictures into a folder.

    Args:
        folder: The folder for the files of the pictures.

    Attributes:
        folder: The folder for the files of the pictures.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def draw(self, size: Size) -> Path:
        """Draw a picture of *size* that differs from all earlier ones, and return its file."""
        self._count += 1
        path = self.folder / f"picture-{self._count:05}.png"
        draw(path, size, seed=self._count)
        return path


def draw(path: Path, size: Size, *, seed: int) -> None:
    """Write a PNG of *size* with some shapes on a background of four blended colours."""
    from PIL import Image, ImageDraw

    rng = random.Random(seed)
    corners = Image.new("RGB", (2, 2))
    corners.putdata([_color(rng) for _ in range(4)])
    image = corners.resize(size, Image.Resampling.BILINEAR)
    canvas = ImageDraw.Draw(image)
    width, height = size
    for _ in range(12):
        x, y = rng.randrange(width), rng.randrange(height)
        radius = rng.randint(min(size) // 20 + 1, min(size) // 4 + 2)
        shape = canvas.ellipse if rng.random() < 0.5 else canvas.rectangle
        shape((x - radius, y - radius, x + radius, y + radius), fill=_color(rng))
    image.save(path, compress_level=1)


def _color(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)
