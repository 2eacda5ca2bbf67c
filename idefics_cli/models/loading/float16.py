"""What float16 needs: modules that leave its range in float32, and attention on old GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers.integrations import sdpa_attention

from idefics_cli.models.families.protocols import Model

_AMPERE = (8, 0)


def keep_in_float32(model: Model, names: Iterable[str]) -> None:
    """Compute the modules of these full *names* in float32; each takes and returns one tensor."""
    for name in names:
        module = cast("nn.Module", model).get_submodule(name)
        dtype = next(module.parameters()).dtype
        module.float().register_forward_pre_hook(_widen_input)
        module.register_forward_hook(partial(_narrow_output, dtype))


def repeat_keys_on_old_gpus() -> None:
    """Let no attention share keys between heads if a GPU before Ampere may compute it.

    Without a mask, transformers then asks torch for grouped heads, for which torch 2.13 has no
    fused kernel on these GPUs: the scores of 8,000 tokens would take 17 GiB (sdp_utils.cpp). With
    keys that are repeated for each head, the memory-efficient kernel computes them.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if any(torch.cuda.get_device_capability(index) < _AMPERE for index in range(count)):
        sdpa_attention.use_gqa_in_sdpa = _never


def _never(*arguments: object) -> bool:
    return False


def _widen_input(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (arguments[0].float(), *arguments[1:])


def _narrow_output(
    dtype: torch.dtype, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    return output.to(dtype)
