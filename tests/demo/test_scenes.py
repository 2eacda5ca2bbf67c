"""The scenes of the built-in model: truth, pictures and splits."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from idefics_cli.demo.drawing import draw, render
from idefics_cli.demo.scenes import (
    BACKGROUNDS,
    COLORS,
    HELD_PAIRS,
    SHAPES,
    Scene,
    SceneObject,
    Split,
    caption,
    make_scene,
    scene_for_split,
)


def canonical(scene: Scene) -> dict[str, object]:
    """Return *scene* in the form whose hash is known from the training scenes."""
    shared = {
        "kind": "text" if scene.lettering else "shapes",
        "bg": scene.background,
        "W": scene.width,
        "H": scene.height,
        "seed": scene.seed,
    }
    if scene.lettering:
        return {**shared, "c": scene.lettering.color, "text": scene.lettering.text}
    keys = ("c", "s", "row", "col", "big", "r", "x", "y")
    fields = SceneObject.__slots__
    things = [
        {key: getattr(thing, field) for key, field in zip(keys, fields, strict=True)}
        for thing in scene.objects
    ]
    return {**shared, "objs": things}


FIFTY = [scene_for_split("combo", i) for i in range(50)]


def test_scenes_are_those_that_the_weights_were_trained_on() -> None:
    text = json.dumps([canonical(scene) for scene in FIFTY], sort_keys=True)

    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "1b7c4219c459e0b5"


def test_pictures_are_those_that_the_weights_were_trained_on() -> None:
    # Equal with Pillow 11.3, 12.0 and 13.0.
    pixels = b"".join(render(scene).tobytes() for scene in FIFTY)

    assert hashlib.sha256(pixels).hexdigest()[:16] == "2c7663d0da70a5e9"


def test_a_picture_does_not_depend_on_the_pictures_before_it() -> None:
    alone = render(FIFTY[7]).tobytes()
    for scene in FIFTY[:7]:
        render(scene, jpeg=True)

    assert render(FIFTY[7]).tobytes() == alone


@pytest.mark.parametrize("split", ["combo", "pair", "train"])
def test_pictures_are_rgb_of_the_size_that_the_scene_says(split: Split) -> None:
    for seed in range(20):
        scene = scene_for_split(split, seed)
        image = render(scene)

        assert (image.mode, image.size) == ("RGB", (scene.width, scene.height))
        assert 100 <= min(image.size) <= max(image.size) <= 300


def test_jpeg_changes_pixels_but_not_what_is_drawn() -> None:
    changed = 0
    for scene in FIFTY:
        plain, lossy = np.asarray(render(scene)), np.asarray(render(scene, jpeg=True))
        difference = np.abs(plain.astype(int) - lossy).mean()
        changed += difference > 0
        assert difference < 8

    assert 5 <= changed <= 25


@pytest.mark.parametrize("scene", [s for s in FIFTY if s.objects])
def test_the_middle_of_every_shape_has_its_colour(scene: Scene) -> None:
    pixels = np.asarray(render(scene)).astype(int)
    for thing in scene.objects:
        x, y = round(thing.x), round(thing.y)
        shown = pixels[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(0)
        distances = {name: np.abs(shown - rgb).sum() for name, rgb in COLORS.items()}

        assert min(distances, key=distances.__getitem__) == thing.color


@pytest.mark.parametrize("scene", FIFTY)
def test_the_corners_of_a_picture_have_the_background_colour(scene: Scene) -> None:
    pixels = np.asarray(render(scene)).astype(int)
    corners = np.stack([pixels[y, x] for y, x in product((0, 1, -2, -1), repeat=2)])
    shown = np.median(corners, axis=0)
    distances = {name: np.abs(shown - rgb).sum() for name, rgb in BACKGROUNDS.items()}

    assert min(distances, key=distances.__getitem__) == scene.background


def test_text_is_where_the_drawing_says() -> None:
    for scene in (s for s in FIFTY if s.lettering):
        drawing = draw(scene)
        pixels = np.asarray(drawing.image).astype(int)
        assert drawing.text_box is not None
        assert scene.lettering is not None
        left, top, right, bottom = drawing.text_box
        away = np.abs(pixels - np.median(pixels, axis=(0, 1))).max(-1) > 90
        inside = away[max(0, top) : bottom, max(0, left) : right]

        assert inside.sum() > 50
        assert inside.sum() == away.sum()
        assert len(drawing.letter_edges) == len(scene.lettering.text) + 1
        assert list(drawing.letter_edges) == sorted(drawing.letter_edges)


def test_the_splits_share_no_combination() -> None:
    train = {scene_for_split("train", i).combination for i in range(3000)}
    combo = {scene_for_split("combo", i).combination for i in range(1500)}
    pair = {scene_for_split("pair", i).combination for i in range(500)}

    assert not train & combo
    assert not train & pair
    assert not combo & pair


def test_never_seen_pairs_are_in_the_pair_split_only_and_all_of_it() -> None:
    def pairs(split: Split, count: int) -> set[tuple[str, str]]:
        scenes = [scene_for_split(split, i) for i in range(count)]
        return {(o.color, o.shape) for scene in scenes for o in scene.objects}

    others = set(product(COLORS, SHAPES)) - HELD_PAIRS

    assert pairs("pair", 500) == HELD_PAIRS
    assert pairs("train", 3000) == others
    assert pairs("combo", 3000) == others


def test_held_out_is_one_combination_in_ten() -> None:
    rng = random.Random(0)
    combinations = {(s := make_scene(rng)).combination: s.is_held_out for _ in range(5000)}

    assert 0.08 < sum(combinations.values()) / len(combinations) < 0.12


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        (
            [SceneObject("orange", "star", 0, 0, True, 40, 50, 50)],
            "A large orange star on a gray background.",
        ),
        (
            [
                SceneObject("orange", "star", 0, 0, True, 40, 50, 50),
                SceneObject("red", "circle", 0, 2, False, 20, 250, 50),
            ],
            "An orange star to the left of a red circle on a gray background.",
        ),
        (
            [
                SceneObject("red", "circle", 0, 2, False, 20, 250, 50),
                SceneObject("orange", "star", 1, 0, True, 40, 50, 150),
            ],
            "A red circle above an orange star on a gray background.",
        ),
        (
            [
                SceneObject("red", "circle", 0, 2, False, 20, 250, 50),
                SceneObject("orange", "star", 1, 0, True, 40, 50, 150),
                SceneObject("blue", "cross", 2, 0, True, 40, 50, 250),
            ],
            "A red circle, an orange star and a blue cross on a gray background.",
        ),
    ],
)
def test_captions_name_the_things_in_reading_order(
    objects: list[SceneObject], expected: str
) -> None:
    assert caption(Scene("gray", 300, 300, 0, objects=tuple(objects))) == expected


def test_scenes_and_questions_load_without_torch_and_pillow() -> None:
    code = (
        "import sys, idefics_cli.demo.questions, idefics_cli.demo.samples;"
        "print(*sys.modules.keys() & {'torch', 'transformers', 'PIL', 'numpy'})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == ""
