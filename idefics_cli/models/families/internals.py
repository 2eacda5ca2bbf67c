"""Reliances on undocumented parts of transformers' models.

`tests/models/test_upstream.py` checks each of them against the installed version.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields
from functools import cache

from idefics_cli.models.families.classes import model_class
from idefics_cli.models.families.protocols import Model


@cache
def cache_name(model_type: str) -> str:
    """Return the name of the KV cache in the forward of the models of *model_type*.

    `past_key_values` became `cache` in transformers 5.24, which warns about the former name.
    """
    taken = inspect.signature(model_class(model_type).forward).parameters
    return "cache" if "cache" in taken else "past_key_values"


@cache
def takes_flat_states() -> bool:
    """Return whether IDEFICS-1 takes the features of all images as one batch (B * N, L, D).

    It does since transformers 5.24, which passes the features on in the shape of the encoder's
    output and returns that output as a whole. Before, it took (B, N, L, D).
    """
    module = importlib.import_module("transformers.models.idefics.modeling_idefics")
    returned = fields(module.IdeficsBaseModelOutputWithPast)
    return any(field.name == "image_outputs" for field in returned)


def attention_of(config: object) -> str:
    """Return the name of the attention in *config*, of a model or of a part of one."""
    return str(getattr(config, "_attn_implementation", ""))


def is_spread(model: Model) -> bool:
    """Return whether *model* is spread over several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def has_8bit_layers(model: Model) -> bool:
    """Return whether *model* has layers of bitsandbytes' LLM.int8()."""
    return bool(getattr(model, "is_loaded_in_8bit", False))
