"""What families and the engine read of transformers' models that the library documents nowhere.

`test_upstream.py` holds each of these to what the installed version does.
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

    `past_key_values` became `cache` in transformers 5.24, which warns of the former name.
    """
    taken = inspect.signature(model_class(model_type).forward).parameters
    return "cache" if "cache" in taken else "past_key_values"


@cache
def takes_flat_states() -> bool:
    """Tell whether IDEFICS-1 takes the states of all images as one batch (B * N, L, D).

    It does since transformers 5.24, which hands the image states on as its encoder gives them,
    and returns that encoder's whole output. It took (B, N, L, D) before.
    """
    module = importlib.import_module("transformers.models.idefics.modeling_idefics")
    returned = fields(module.IdeficsBaseModelOutputWithPast)
    return any(field.name == "image_outputs" for field in returned)


def attention_of(config: object) -> str:
    """Return the name of the attention that a model of *config*, or a part of one, runs."""
    return str(getattr(config, "_attn_implementation", ""))


def is_spread(model: Model) -> bool:
    """Tell whether several devices hold *model*."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def has_8bit_layers(model: Model) -> bool:
    """Tell whether bitsandbytes' LLM.int8() multiplies in *model*."""
    return bool(getattr(model, "is_loaded_in_8bit", False))
