"""Rendered pictures and the batches of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image

from idefics_cli.demo.drawing import draw, render
from idefics_cli.demo.scenes import scene_for_split
from idefics_cli.demo.training.dataset import BatchSource, Pictures, loosened, render_split, resized
from idefics_cli.demo.training.encoding import Encoder
from idefics_cli.models.families.protocols import Processor


def processed(processor: Processor, images: list[list[Image.Image]]) -> dict[str, torch.Tensor]:
    """Return the inputs that the image processor of transformers makes of *images*."""
    library = cast("Callable[..., dict[str, torch.Tensor]]", processor.image_processor)
    return library(images, return_tensors="pt")


def test_resizing_gives_what_the_image_processor_gives(processor: Processor) -> None:
    for seed in range(25):
        image = render(scene_for_split("train", seed))
        inputs = processed(processor, [[image]])
        expected = inputs["pixel_values"][0, 0].permute(1, 2, 0).numpy()
        ours = np.asarray(resized(image)) / 127.5 - 1

        assert ours.shape == expected.shape
        assert np.abs(ours - expected).max() < 1e-5


def test_batches_are_what_the_processor_makes_of_the_same_pictures(
    processor: Processor, data: Path
) -> None:
    pictures = Pictures(data, "train")
    groups = [[3], [5, 8]]
    values, mask = pictures.pixels(groups)
    images = [[draw(pictures.scene(i), jpeg=True).image for i in group] for group in groups]
    inputs = processed(processor, images)

    assert torch.allclose(values, inputs["pixel_values"], atol=1e-5)
    assert torch.equal(mask, inputs["pixel_attention_mask"])


def test_rendered_pictures_are_used_again_unless_their_number_differs(tmp_path: Path) -> None:
    render_split(tmp_path, "combo", 3)
    path = tmp_path / "combo-pixels.npy"
    before = path.stat().st_mtime_ns
    render_split(tmp_path, "combo", 3)
    assert path.stat().st_mtime_ns == before

    render_split(tmp_path, "combo", 4)
    assert len(Pictures(tmp_path, "combo")) == 4


def test_the_source_keeps_to_the_share_of_its_process(data: Path, processor: Processor) -> None:
    pictures = Pictures(data, "train")
    seen: list[list[list[int]]] = []

    class Recording(Pictures):
        def pixels(self, groups: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append([list(group) for group in groups])
            return pictures.pixels(groups)

    source = BatchSource(Recording(data, "train"), Encoder(processor), seed=0, rank=1, processes=2)
    for _ in range(40):
        source.next_batch(10)
    groups = [group for batch in seen for group in batch]
    alone = [group[0] for group in groups if len(group) == 1]

    assert {len(group) for group in groups} == {0, 1, 2}
    assert all(index % 2 == 1 for index in alone)
    # Every picture of the share comes once before one comes twice, in pairs or alone.
    assert len(set(alone[:60])) == 60


def test_loosened_questions_lose_at_most_mark_and_capital() -> None:
    rng = random.Random(0)
    forms = [loosened("What is it?", rng) for _ in range(1000)]

    assert set(forms) == {"What is it?", "What is it", "what is it?", "what is it"}
    assert 0.7 < forms.count("What is it?") / 1000 < 0.9
