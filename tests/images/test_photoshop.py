"""Photoshop files: the channels, the rows and the orientation of the merged picture."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from tests.support.pictures import (
    QUADRANTS,
    corners,
    difference,
    opened,
    quadrants,
    refusal,
)

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
PICTURE = np.asarray(quadrants())
ALL_CLEAR = np.zeros((48, 64), np.uint8)


def psd(
    planes: list[NDArray[np.uint8]],
    *,
    mode: int,
    bits: int = 8,
    rle: bool = True,
    layers: int | None = None,
    resources: bytes = b"",
    padding: bytes = b"",
) -> bytes:
    """Return a Photoshop file (Adobe Photoshop File Formats) of these channels.

    Args:
        planes: The rows of each channel as bytes.
        mode: 0 bitmap, 1 grey, 3 RGB, 4 CMYK, 7 multichannel.
        bits: Bits of a sample.
        rle: Compress the rows.
        layers: The number of layers; negative if the first further channel is transparency.
        resources: The image resources.
        padding: Bytes after the last pixel of each compressed row.
    """
    height, width = planes[0].shape[0], planes[0].shape[1] * 8 // bits
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, len(planes), height, width, bits, mode)
    info = b"" if layers is None else struct.pack(">Ih", 2, layers)
    sections = b"".join(struct.pack(">I", len(s)) + s for s in (b"", resources, info))
    rows = [row.tobytes() for plane in planes for row in plane]
    if not rle:
        return header + sections + b"\0\0" + b"".join(rows)
    # PackBits: 128 literal bytes at most.
    rows = [
        b"".join(bytes([len(p) - 1]) + p for p in (r[i : i + 99] for i in range(0, len(r), 99)))
        + padding
        for r in rows
    ]
    table = b"".join(struct.pack(">H", len(row)) for row in rows)
    return header + sections + b"\0\1" + table + b"".join(rows)


COLOURS = [PICTURE[..., band] for band in range(3)]


@pytest.mark.parametrize("rle", [True, False])
@pytest.mark.parametrize("selections", [0, 1, 2])
@pytest.mark.parametrize("layers", [None, 2])
def test_saved_selections_of_a_psd_change_nothing(
    rle: bool, selections: int, layers: int | None
) -> None:
    data = psd(COLOURS + [ALL_CLEAR] * selections, mode=3, rle=rle, layers=layers)

    assert difference(opened(data), quadrants()) == 0


@pytest.mark.parametrize("selections", [0, 1])
def test_the_alpha_of_a_psd_is_what_its_layers_say(selections: int) -> None:
    alpha = ALL_CLEAR.copy()
    alpha[:, 32:] = 255
    extra = [ALL_CLEAR] * selections

    image = opened(psd([*COLOURS, alpha, *extra], mode=3, layers=-1))

    assert corners(image) == [WHITE, QUADRANTS[1], WHITE, QUADRANTS[3]]


def test_colours_that_photoshop_has_blended_with_white_are_not_blended_again() -> None:
    alpha = np.full((48, 64), 128, np.uint8)
    alpha[:24] = 0
    weight = alpha[..., None] / 255
    blended = np.rint(PICTURE * weight + 255 * (1 - weight)).astype(np.uint8)

    image = opened(psd([*np.moveaxis(blended, -1, 0), alpha], mode=3, layers=-1))

    assert difference(image, Image.fromarray(blended)) == 0


def test_a_grey_or_cmyk_psd_with_a_selection_keeps_its_channels_apart() -> None:
    grey = np.asarray(quadrants().convert("L"))
    inverted = 255 - np.asarray(quadrants().convert("CMYK"))

    as_grey = opened(psd([grey, ALL_CLEAR], mode=1))
    as_cmyk = opened(psd([*np.moveaxis(inverted, -1, 0), ALL_CLEAR], mode=4))

    assert difference(as_grey, Image.fromarray(grey).convert("RGB")) == 0
    assert difference(corners(as_cmyk), QUADRANTS) <= 1


@pytest.mark.parametrize("rle", [True, False])
def test_a_bitmap_psd_is_not_a_negative(rle: bool) -> None:
    bits = np.zeros((16, 2), np.uint8)
    bits[:8, :1] = 0xFF  # 1 is black

    image = opened(psd([bits], mode=0, bits=1, rle=rle))

    assert corners(image) == [BLACK, WHITE, WHITE, WHITE]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (psd(COLOURS, mode=7), "multichannel"),
        (
            psd(COLOURS, mode=3, resources=b"8BIM\x04\x21\0\0\0\0\0\6\0\0\0\1\0\0"),
            "without its merged picture",
        ),
        (psd([np.repeat(c, 2, 1) for c in COLOURS], mode=3, bits=16), "16 bits"),
    ],
    ids=["multichannel", "no composite", "16 bits"],
)
def test_a_psd_without_a_plain_picture_is_unsupported(data: bytes, reason: str) -> None:
    error = refusal(data)

    assert (error.kind, reason in str(error)) == ("unsupported", True)
    assert "PNG" in (error.hint or "")


def test_bytes_after_the_last_pixel_of_a_row_are_not_of_the_next_row() -> None:
    data = psd([*COLOURS, ALL_CLEAR], mode=3, padding=b"\x01\x55\xaa")

    assert difference(opened(data), quadrants()) == 0


def test_a_psd_is_turned_upright_by_its_exif_orientation() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = exif.tobytes()[6:]
    content += b"\0" * (len(content) % 2)
    resource = b"8BIM\x04\x22\0\0" + struct.pack(">I", len(content)) + content

    image = opened(psd(COLOURS, mode=3, resources=resource))

    assert difference(image, quadrants().transpose(Image.Transpose.ROTATE_270)) == 0
    assert image.info["original_size"] == (48, 64)
