"""Pictures of known pixels, files of them, and the loader on bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader

Colour = tuple[int, int, int]

RED, BLUE, YELLOW, GREEN = (220, 40, 30), (20, 60, 200), (250, 240, 10), (30, 160, 60)
QUADRANTS = (RED, BLUE, YELLOW, GREEN)
"""Top left, top right, bottom left, bottom right of `quadrants`."""

FILE_FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {}),
    "jpeg-progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "webp-lossless": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "bmp": ("BMP", {}),
    "ppm": ("PPM", {}),
    "qoi": ("QOI", {}),
    "sgi": ("SGI", {}),
    "pcx": ("PCX", {}),
}
"""Pillow's name and options of formats whose files end where their last pixel does."""


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    """Return a picture of four colours, so that every turn or flip changes it."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = BLUE
    pixels[height // 2 :, : width // 2] = YELLOW
    pixels[height // 2 :, width // 2 :] = GREEN
    return Image.fromarray(pixels)


def noise(width: int = 40, height: int = 30) -> Image.Image:
    """Return a picture that hardly compresses, the same at every call."""
    pixels = np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """Return *image* as a file of *format*."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def opened(
    data: bytes, limits: ImageLimits | None = None, *, draft_edge: int | None = None
) -> Image.Image:
    """Return the image that the loader makes of a file with these bytes."""
    loader = ImageLoader(limits or ImageLimits(), stdin=io.BytesIO(data))
    return loader.open(Attachment("-"), draft_edge=draft_edge)


def refusal(data: bytes, limits: ImageLimits | None = None) -> ImageError:
    """Return the error for a file with these bytes; it must name the source and have a hint."""
    with pytest.raises(ImageError) as caught:
        opened(data, limits)
    error = caught.value
    assert "`stdin`" in str(error)
    assert error.hint
    assert len(str(error)) < 250
    return error


def corners(image: Image.Image) -> list[Colour]:
    """Return the colours in the middles of the four quadrants, as `QUADRANTS`."""
    width, height = image.size
    pixels = np.asarray(image)
    return [
        tuple(pixels[int(y * height), int(x * width)].tolist())
        for y in (0.25, 0.75)
        for x in (0.25, 0.75)
    ]


def difference(ours: Image.Image | Sequence[Colour], theirs: Image.Image | Sequence[Colour]) -> int:
    """Return the largest difference of any sample, 0 to 255."""
    return int(np.abs(np.asarray(ours, np.int64) - np.asarray(theirs, np.int64)).max())


def png(
    width: int,
    height: int,
    rows: bytes,
    *,
    depth: int,
    colour_type: int,
    extra: Sequence[tuple[bytes, bytes]] = (),
    more: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Return a PNG of any kind (PNG specification, 3rd edition); Pillow cannot write all kinds.

    Args:
        width: Width in the header, in pixels.
        height: Height in the header, in pixels.
        rows: The samples, each row led by its filter byte, 0.
        depth: Bits per sample.
        colour_type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
        extra: Chunks between the header and the data.
        more: Chunks after the data.
    """
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), *more, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_filter_bytes(samples: NDArray[np.uint8]) -> bytes:
    """Return the rows of *samples* (H, bytes), each led by the filter byte 0."""
    return np.pad(samples, ((0, 0), (1, 0))).tobytes()


def tiff(samples: bytes, tags: dict[int, int | tuple[int, ...]], order: str = "<") -> bytes:
    """Return a TIFF 6.0 file of one strip.

    Args:
        samples: The strip, or several of one size, one for each plane.
        tags: SHORT values by tag. The size is 64 x 48 unless tags 256 and 257 say otherwise.
        order: "<" or ">".
    """
    planes = tags.get(277, 1) if tags.get(284) == 2 else 1
    assert isinstance(planes, int)
    step = len(samples) // planes
    rows: dict[int, tuple[str, tuple[int, ...]]] = {
        tag: ("H", value if isinstance(value, tuple) else (value,))
        for tag, value in ({256: 64, 257: 48, 259: 1} | tags).items()
    }
    rows[273] = ("I", tuple(8 + i * step for i in range(planes)))
    rows[279] = ("I", (step,) * planes)
    samples += b"\0" * (len(samples) % 2)
    extra_at = 8 + len(samples) + 2 + 12 * len(rows) + 4
    directory, extra = struct.pack(order + "H", len(rows)), b""
    for tag, (kind, values) in sorted(rows.items()):
        value = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(value) > 4:
            place = struct.pack(order + "I", extra_at + len(extra))
            extra += value + b"\0" * (len(value) % 2)
            value = place
        code = 3 if kind == "H" else 4
        directory += struct.pack(order + "HHI", tag, code, len(values)) + value.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    start = struct.pack(order + "I", 8 + len(samples))
    return magic + start + samples + directory + bytes(4) + extra
