"""All reading of undocumented parts of transformers' models, and use of those of torch.

`tests/models/test_upstream.py` checks each part against the installed version.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection
from contextlib import suppress
from dataclasses import fields
from functools import cache
from typing import cast

import torch
from torch import nn

from idefics_cli.models.families.classes import model_class
from idefics_cli.models.families.protocols import Model


@cache
def cache_name(model_type: str) -> str:
    """Return the name of the argument for the KV cache in the forward of *model_type*.

    transformers 5.24 renamed `past_key_values` to `cache`, and warns about the old name.
    """
    taken = inspect.signature(model_class(model_type).forward).parameters
    return "cache" if "cache" in taken else "past_key_values"


@cache
def takes_flat_states() -> bool:
    """Return whether IDEFICS-1 takes the features of all images as one batch (B * N, L, D).

    transformers 5.24 and later take this shape, which is that of the encoder's output. Earlier
    versions take (B, N, L, D). The versions differ in a field of the model's output, which this
    function looks for.
    """
    module = importlib.import_module("transformers.models.idefics.modeling_idefics")
    returned = fields(module.IdeficsBaseModelOutputWithPast)
    return any(field.name == "image_outputs" for field in returned)


def attention_of(config: object) -> str:
    """Return the name of the attention in *config*, the config of a model or of a part of it."""
    return str(getattr(config, "_attn_implementation", ""))


def is_spread(model: Model) -> bool:
    """Return whether *model* is divided between several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def text_layer_devices(model: Model, other_modules: Collection[str]) -> list[torch.device]:
    """Return the device on which each layer of the text model computes.

    Args:
        model: The model, which may be divided between several devices.
        other_modules: Names of the modules that do not belong to the text model.
    """
    count = model.config.get_text_config().num_hidden_layers
    names = [
        f"{path}.{index}"
        for path, module in cast("nn.Module", model).named_modules()
        if path.rpartition(".")[2] == "layers" and not path.startswith(tuple(other_modules))
        for index in range(count)
    ]
    return [_device_of(name, model) for name in names]


def _device_of(name: str, model: Model) -> torch.device:
    """Return the device on which the module *name* computes."""
    devices: dict[str, int | str] = getattr(model, "hf_device_map", {})
    above = [part for part in devices if part == "" or f"{name}.".startswith(f"{part}.")]
    place = devices[max(above, key=len)] if above else "cpu"
    # accelerate copies weights that stay in RAM or on the disk to the first device.
    if place in ("cpu", "disk"):
        return model.device
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def has_8bit_layers(model: Model) -> bool:
    """Return whether *model* has layers of bitsandbytes' LLM.int8()."""
    return bool(getattr(model, "is_loaded_in_8bit", False))


def end_recording(device: int, pool: tuple[int, int]) -> None:
    """Tell the allocator of a CUDA *device* that a recording into *pool* has ended with an error.

    torch 2.11 and 2.12 skip this, and every later `torch.cuda.empty_cache` then fails, also the
    one with which the allocator makes room before it reports that memory ran out (pytorch
    #180395). Later versions have done it already.
    """
    with suppress(RuntimeError):  # "not currently recording"
        torch._C._cuda_endAllocateToPool(device, pool)


def exceeds_window(model: Model, tokens: int) -> bool:
    """Return whether a prompt of *tokens* is longer than the sliding window of the text model."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return window is not None and tokens > window
