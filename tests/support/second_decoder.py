"""libvips as a second decoder, and how far two pictures differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_CELLS = 16  # along each side


def vips() -> Any:
    """Return the module pyvips; the test is skipped without it."""
    pyvips = pytest.importorskip("pyvips", reason="needs pyvips and pyvips-binary")
    pyvips.cache_set_max(0)
    return pyvips


def seen_by_vips(path: str) -> Pixels | None:
    """Return the picture at *path*, upright, over white and in sRGB.

    Returns:
        None if libvips cannot read it, or must guess its colours: CMYK without a profile.
    """
    pyvips = vips()
    try:
        image = pyvips.Image.new_from_file(path, access="random").autorot()
        if image.get_typeof("icc-profile-data"):
            try:
                managed = image.icc_transform("srgb", embedded=True, intent="perceptual", depth=8)
                managed.avg()
                image = managed
            except pyvips.Error:  # a broken profile
                pass
        if image.interpretation == "cmyk":
            return None
        if image.interpretation != "srgb":
            image = image.colourspace("srgb")
        if image.bands < 3:
            grey = image.extract_band(0)
            image = grey.bandjoin([grey, grey, *image.bandsplit()[1:]])
        if exponent := _gamma_exponent(path):
            colours = image.extract_band(0, n=3)
            colours = ((colours / 255) ** exponent * 255).rint().cast("uchar")
            image = colours.bandjoin(image.bandsplit()[3:]) if image.bands > 3 else colours
        if image.hasalpha():
            image = image.copy(interpretation="srgb").flatten(background=[255, 255, 255])
        memory = image.cast("uchar").write_to_memory()
    except pyvips.Error:
        return None
    return np.frombuffer(memory, np.uint8).reshape(image.height, image.width, -1)[..., :3]


def _gamma_exponent(path: str) -> float:
    """Return the power that gives the samples of a PNG the gamma of a screen; 0 for none.

    libvips ignores gAMA.
    """
    head = Path(path).read_bytes()[: 1 << 16]
    start = head[: head.find(b"IDAT")].find(b"gAMA")
    if not head.startswith(b"\x89PNG") or start < 0 or b"iCCP" in head or b"sRGB" in head:
        return 0
    gamma = int.from_bytes(head[start + 4 : start + 8]) / 100_000
    return 1 / (2.2 * gamma) if gamma and abs(2.2 * gamma - 1) > 0.05 else 0


def distance(first: Pixels, second: Pixels) -> float:
    """Return the largest difference of the means of 16 x 16 cells; infinity for other sizes.

    Cells forgive the edges of letters, which decoders of chroma place differently, and show a
    fault of a part of the picture.
    """
    if first.shape != second.shape:
        return float("inf")
    return float(np.abs(_means(first) - _means(second)).max())


def _means(pixels: Pixels) -> NDArray[np.float64]:
    height, width, _ = pixels.shape
    rows, columns = (
        np.linspace(0, edge, min(_CELLS, edge) + 1).astype(int) for edge in (height, width)
    )
    sums = np.add.reduceat(pixels.astype(np.float64), rows[:-1], 0)
    sums = np.add.reduceat(sums, columns[:-1], 1)
    means: NDArray[np.float64] = sums / (np.diff(rows)[:, None, None] * np.diff(columns)[:, None])
    return means
