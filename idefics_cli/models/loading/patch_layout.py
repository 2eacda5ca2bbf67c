"""The layout of patches in memory: the numbers of one patch lie side by side."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from idefics_cli.models.families.protocols import Model


def lay_out_patches(model: Model) -> None:
    """Let the vision tower of *model* start from contiguous patches.

    The patches come from a convolution, and transformers only transposes its result. Sums and norms
    keep that layout through all layers. On a CPU, a norm is then 4 times as slow and the sum of a
    residual 12 times, together 7 % of the time of the tower (bfloat16, 1,024 patches of SigLIP, one
    thread, torch 2.13, AMD Zen 5). The numbers stay the same.
    """
    for module in cast("nn.Module", model).modules():
        if hasattr(module, "num_patches_per_side") and hasattr(module, "patch_embedding"):
            module.register_forward_hook(_contiguous)


def _contiguous(module: nn.Module, arguments: tuple[Tensor, ...], patches: Tensor) -> Tensor:
    return patches.contiguous()
