"""Targets for the auxiliary losses of the training: the content of each patch of a picture.

If a new model learns from answers alone, it learns the language first and, for a long time, nothing
about the picture. But the scene of each picture is known. So the content of every patch, and of
every image token, is known as well, and the model learns to recognise it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from idefics_cli.demo.build import LATENTS, LONGEST_EDGE, PATCH
from idefics_cli.demo.drawing import Drawing
from idefics_cli.demo.scenes import (
    BACKGROUNDS,
    COLORS,
    DIGITS,
    SHAPES,
    WORDS,
    Lettering,
    Scene,
    SceneObject,
)

GRID = LONGEST_EDGE // PATCH
"""Number of patches along the longest edge of a picture."""

_THINGS = {name: 1 + i for i, name in enumerate((*SHAPES, *DIGITS, *WORDS))}
_COLORS = {name: 1 + i for i, name in enumerate(COLORS)}
_BACKGROUNDS = {name: i for i, name in enumerate(BACKGROUNDS)}
_CHARACTERS = {name: 1 + i for i, name in enumerate((*DIGITS, *sorted(set("".join(WORDS)))))}
_THING, _COLOR, _BACKGROUND, _SIZE, _PLACE, _CHARACTER = range(6)

FACETS = (1 + len(_THINGS), 1 + len(_COLORS), len(_BACKGROUNDS), 3, 10, 1 + len(_CHARACTERS))
"""The number of classes of each facet. A facet is one property of the content of a patch.

In order: thing, colour, background, size, place in a grid of 3x3, and character.
"""
CLASSES = sum(FACETS)

_CELLS_PER_EDGE = 4
_IGNORED = -1
_TEXT_MARGIN = 4
_SMALLEST_REACH = 8.5


def patch_labels(scene: Scene, drawing: Drawing, *, width: int, height: int) -> NDArray[np.int8]:
    """Return the class of every facet for every patch.

    Args:
        scene: Scene of the picture.
        drawing: The picture before it was resized.
        width: Width of the resized picture in pixels.
        height: Height of the resized picture in pixels.

    Returns:
        Classes (`GRID`, `GRID`, facets). -1 means "outside the picture". 0 means "nothing here" for
        all facets but the background, which is everywhere.
    """
    rows, columns = height // PATCH, width // PATCH
    labels = np.full((GRID, GRID, len(FACETS)), _IGNORED, np.int8)
    inside = labels[:rows, :columns]
    inside[:] = 0
    inside[:, :, _BACKGROUND] = _BACKGROUNDS[scene.background]
    scale = (width / scene.width, height / scene.height)
    # *x* and *y* are the middles of the patches, in pixels of the resized picture.
    x, y = (np.arange(columns) + 0.5) * PATCH, (np.arange(rows) + 0.5) * PATCH
    if scene.lettering is not None:
        _label_text(inside, scene.lettering, drawing, x, y, scale)
    for thing in scene.objects:
        _label_object(inside, thing, x, y, scale)
    return labels


def slot_targets(labels: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return the target of each image token.

    Each of the 16 image tokens stands for a cell of the picture in a grid of 4x4, and must contain
    what is in this cell.

    Args:
        labels: Classes (`GRID`, `GRID`, facets) from `patch_labels`.

    Returns:
        Targets (`LATENTS`, `CLASSES`): 1 for every class that a patch in the cell has, else 0.
    """
    rows = int((labels[:, 0, _BACKGROUND] != _IGNORED).sum())
    columns = int((labels[0, :, _BACKGROUND] != _IGNORED).sum())
    inside = labels[:rows, :columns].reshape(-1, len(FACETS)).astype(int)
    row_cells = np.arange(rows) * _CELLS_PER_EDGE // rows
    column_cells = np.arange(columns) * _CELLS_PER_EDGE // columns
    cells = (row_cells[:, None] * _CELLS_PER_EDGE + column_cells[None]).ravel()
    targets = np.zeros((LATENTS, CLASSES), np.float32)
    offsets = np.cumsum((0, *FACETS[:-1]))
    for facet, offset in enumerate(offsets):
        targets[cells, offset + inside[:, facet]] = 1
    return targets


def _label_object(
    labels: NDArray[np.int8],
    thing: SceneObject,
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    scale: tuple[float, float],
) -> None:
    distance = np.hypot(x[None] - thing.x * scale[0], y[:, None] - thing.y * scale[1])
    shown = distance <= max(thing.radius * scale[0] * 0.95, _SMALLEST_REACH)
    if not shown.any():
        shown = distance == distance.min()
    labels[shown, _THING] = _THINGS[thing.shape]
    labels[shown, _COLOR] = _COLORS[thing.color]
    labels[shown, _SIZE] = 2 if thing.is_large else 1
    labels[shown, _PLACE] = 1 + thing.row * 3 + thing.column


def _label_text(
    labels: NDArray[np.int8],
    lettering: Lettering,
    drawing: Drawing,
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    scale: tuple[float, float],
) -> None:
    if drawing.text_box is None:
        raise ValueError("the drawing is not of a scene with text")
    left, top, right, bottom = drawing.text_box
    columns = (x >= left * scale[0] - _TEXT_MARGIN) & (x <= right * scale[0] + _TEXT_MARGIN)
    rows = (y >= top * scale[1] - _TEXT_MARGIN) & (y <= bottom * scale[1] + _TEXT_MARGIN)
    shown = rows[:, None] & columns[None]
    labels[shown, _THING] = _THINGS[lettering.text]
    labels[shown, _COLOR] = _COLORS[lettering.color]
    edges = [edge * scale[0] for edge in drawing.letter_edges]
    for character, start, stop in zip(lettering.text, edges, edges[1:], strict=False):
        under = (x >= start) & (x < stop)
        if not under.any():
            # The letter is so narrow that no middle of a patch is under it. It gets the patch that
            # contains the middle of the letter.
            middle = min(len(x) - 1, int((start + stop) / 2 / PATCH))
            under = np.arange(len(x)) == middle
        labels[rows[:, None] & under[None], _CHARACTER] = _CHARACTERS[character]
