"""Dense labels: what each patch and each image token shows."""

from __future__ import annotations

import numpy as np

from idefics_cli.demo.build import PATCH
from idefics_cli.demo.drawing import draw
from idefics_cli.demo.scenes import COLORS, SHAPES, scene_for_split
from idefics_cli.demo.training.dataset import resized
from idefics_cli.demo.training.truth import FACETS, patch_labels, slot_targets


def test_patches_are_labelled_with_what_is_there() -> None:
    for seed in range(40):
        scene = scene_for_split("train", seed)
        drawing = draw(scene)
        small = resized(drawing.image)
        labels = patch_labels(scene, drawing, width=small.width, height=small.height)
        rows, columns = small.height // PATCH, small.width // PATCH

        assert (labels[rows:] == -1).all()
        assert (labels[:, columns:] == -1).all()
        assert (labels[:rows, :columns] >= 0).all()
        for thing in scene.objects:
            row = min(rows - 1, int(thing.y * small.height / scene.height / PATCH))
            column = min(columns - 1, int(thing.x * small.width / scene.width / PATCH))
            here = labels[row, column].tolist()
            assert here[0] == 1 + SHAPES.index(thing.shape)
            assert here[1] == 1 + list(COLORS).index(thing.color)
            assert here[3] == 1 + thing.is_large
            assert here[4] == 1 + 3 * thing.row + thing.column
        if scene.lettering:
            named = set(labels[:rows, :columns, 5].ravel().tolist()) - {0}
            assert len(named) == len(set(scene.lettering.text))


def test_slots_know_exactly_the_classes_of_their_cells() -> None:
    scene = scene_for_split("train", 5)
    drawing = draw(scene)
    labels = patch_labels(scene, drawing, width=112, height=112)
    targets = slot_targets(labels)
    offsets = np.cumsum((0, *FACETS[:-1]))
    for cell in range(16):
        row, column = divmod(cell, 4)
        patches = labels[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(
            -1, len(FACETS)
        )
        expected = {
            int(offset + k) for patch in patches for offset, k in zip(offsets, patch, strict=True)
        }

        assert set(np.flatnonzero(targets[cell]).tolist()) == expected
