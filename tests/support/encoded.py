"""Requests as the inputs of a model, to compare them with those of the library."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Prepared
from tests.support.pixels import pixel_values
from tests.support.prompts import image_of


def encode(engine: LocalEngine, prepared: Prepared) -> dict[str, torch.Tensor]:
    """Return the inputs of the model, with the pictures padded as transformers does."""
    family = engine.loaded.family
    inputs = family.encode([prepared.request], [prepared.pictures])
    # Preprocessed again, because the pictures that the engine remembers have no pixels.
    images = map(image_of, prepared.request.attachments)
    tiles = [tile for image in images for tile in pixel_values(family.preprocess(image))]
    if tiles:
        inputs |= _padded(tiles)
    return inputs


def _padded(tiles: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
    pixels = torch.zeros(1, len(tiles), 3, height, width)
    mask = torch.zeros(1, len(tiles), height, width, dtype=torch.int64)
    for index, tile in enumerate(tiles):
        pixels[0, index, :, : tile.shape[1], : tile.shape[2]] = tile
        mask[0, index, : tile.shape[1], : tile.shape[2]] = 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def assert_same_inputs(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Check that ids, masks and pixels are those of the library."""
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert ours["attention_mask"].tolist() == theirs["attention_mask"].tolist()
    # Without a picture, transformers gives IDEFICS-1 a black one, which is masked.
    has_images = "pixel_values" in theirs and bool(theirs["pixel_values"].any())
    assert ("pixel_values" in ours) == has_images
    for name in ("pixel_values", "pixel_attention_mask", "image_attention_mask"):
        if name in theirs and (has_images or name == "image_attention_mask"):
            assert torch.equal(ours[name], theirs[name]), name
