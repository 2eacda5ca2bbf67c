"""The positions of patches, computed in float32 where transformers rounds them to 16 bits."""

from __future__ import annotations

from typing import cast

import transformers
from torch import Tensor, nn

from idefics_cli.models.families.protocols import Model

_FIXED_IN = (5, 21)


def compute_positions_exactly(model: Model) -> None:
    """Let a 16-bit *model* find the place of each patch in float32.

    Before version 5.21, transformers rounds the place of a patch to the dtype of the pixels and
    then looks up its position embedding. In bfloat16, 10 of the 26 rows of patches in a tile of
    Idefics3 so get the embedding of the row above, and the same holds for columns
    (modeling_idefics3.py, `fractional_coords_h.to(pixel_values.dtype)`).
    """
    if tuple(map(int, transformers.__version__.split(".")[:2])) >= _FIXED_IN:
        return
    for module in cast("nn.Module", model).modules():
        if hasattr(module, "num_patches_per_side"):
            module.register_forward_pre_hook(_widen_pixels, with_kwargs=True)
            patches = cast("nn.Conv2d", module.patch_embedding)
            patches.register_forward_pre_hook(_narrow_pixels)


def _widen_pixels(
    module: nn.Module, arguments: tuple[object, ...], named: dict[str, Tensor]
) -> tuple[tuple[object, ...], dict[str, Tensor]]:
    return arguments, {**named, "pixel_values": named["pixel_values"].float()}


def _narrow_pixels(module: nn.Conv2d, arguments: tuple[Tensor]) -> tuple[Tensor]:
    return (arguments[0].to(module.weight.dtype),)
