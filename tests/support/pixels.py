"""The pixels of prepared pictures as a model takes them."""

from __future__ import annotations

import torch
from torch import Tensor

from idefics_cli.models.families.picture import PictureTensors, apply_levels


def pixel_values(tensors: PictureTensors) -> tuple[Tensor, ...]:
    """Return the pixels (3, H, W) of each tile, normalized, as float32."""
    if tensors.levels is None:
        return tensors.tiles
    made = tuple(torch.empty(tile.shape) for tile in tensors.tiles)
    for tile, target in zip(tensors.tiles, made, strict=True):
        apply_levels(tensors.levels, tile, target)
    return made
