"""The compiled decode step of a loaded model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from idefics_cli.models.families.internals import cache_name
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.families.spec import FamilySpec
from idefics_cli.models.kernels.text_step.step import TextLayer, TextModel, TextStep
from idefics_cli.models.loading.layers import ChosenKernels

_log = logging.getLogger(__name__)
# Layers of these classes compute the same.
_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer")
# The rotary embeddings of other kinds depend on the length of the whole text.
_ROTARY_KINDS = ("default", "linear", "llama3", "yarn")
# Allowed difference from transformers, relative to its result. In bfloat16 the order of a sum
# decides how it is rounded.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}
_TOKENS = 3


def step_of(model: Model, family: FamilySpec, kernels: ChosenKernels) -> TextStep | None:
    """Return the compiled decode step of *model*; None if torch runs its layers one by one.

    The step of the first layer is compared with transformers. If they differ, a warning is logged.

    Args:
        model: In eval mode.
        family: The family of the model.
        kernels: The kernels of the plan.
    """
    text = text_model_of(model, family)
    step = None if text is None else kernels.step(text)
    if text is None or step is None:
        return None
    first = kernels.step(replace(text, layers=text.layers[:1]))
    if first is not None and _is_right(first, text, model, family):
        return step
    _log.warning("the kernel `%s` fails its self-test; %s replaces it", "text_step", "torch")
    return None


def text_model_of(model: Model, family: FamilySpec) -> TextModel | None:
    """Return the modules of the text model of *model*; None if its structure is not Llama's."""
    config = model.config.get_text_config()
    if family.text_path is None or getattr(config, "hidden_act", None) != "silu":
        return None
    text = cast("nn.Module", model).get_submodule(family.text_path)
    layers = list(cast("nn.ModuleList", text.layers))
    rotary = cast("nn.Module", text.rotary_emb)
    is_known = getattr(rotary, "rope_type", None) in _ROTARY_KINDS
    if not is_known or any(type(layer).__name__ not in _LAYERS for layer in layers):
        return None
    attention = cast("_SelfAttention", layers[0].self_attn)
    return TextModel(
        layers=[_layer(layer) for layer in layers],
        norm=cast("nn.Module", text.norm),
        head=model.get_output_embeddings(),
        rotary=rotary,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=attention.head_dim,
        epsilon=config.rms_norm_eps,
        scaling=attention.scaling,
        window=getattr(config, "sliding_window", None),
        dtype=model.model.dtype,
    )


def _layer(layer: nn.Module) -> TextLayer:
    attention, gated = cast("nn.Module", layer.self_attn), cast("nn.Module", layer.mlp)
    names = {
        "input_norm": layer.input_layernorm,
        "query": attention.q_proj,
        "key": attention.k_proj,
        "value": attention.v_proj,
        "output": attention.o_proj,
        "output_norm": layer.post_attention_layernorm,
        "gate": gated.gate_proj,
        "up": gated.up_proj,
        "down": gated.down_proj,
    }
    return TextLayer(**{name: cast("nn.Module", module) for name, module in names.items()})


class _SelfAttention(Protocol):
    """What is read of an attention layer."""

    head_dim: int
    scaling: float


@dataclass(slots=True)
class _OneLayer:
    """The KV states of one layer, for `TextStep`."""

    keys: Tensor
    values: Tensor


def _is_right(step: TextStep, text: TextModel, model: Model, family: FamilySpec) -> bool:
    """Whether *step*, that of the first layer alone, computes what transformers does."""
    generator = torch.Generator().manual_seed(0)
    width = cast("int", text.layers[0].query.in_features)
    tokens = torch.randn(2, _TOKENS, width, generator=generator).to(text.dtype)
    module = cast("nn.Module", model).get_submodule(family.text_path or "")
    cache, named = DynamicCache(), cache_name(model.config.model_type)
    shape = (2, text.kv_heads, _TOKENS, text.head_width)
    states = _OneLayer(torch.zeros(shape, dtype=text.dtype), torch.zeros(shape, dtype=text.dtype))
    with torch.inference_mode(), _only_first_layer(module):
        for position in range(_TOKENS):
            inputs = {"inputs_embeds": tokens[:, position : position + 1], named: cache}
            hidden = module(use_cache=True, **inputs).last_hidden_state[:, -1]
            wanted = text.head(hidden).float()
            given = step(tokens[:, position], [position] * 2, [states]).float()
            if not _are_close(given, wanted, text.dtype):
                return False
        prompts = [step.run_prompt(row, 0, [states]).float() for row in tokens]
        return _are_close(torch.cat(prompts), wanted, text.dtype)


def _are_close(given: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    # With damaged weights, the first reply is an error that names them.
    return not bool(wanted.isfinite().all()) or bool(
        (given - wanted).norm() <= _TOLERANCE[dtype] * wanted.norm()
    )


@contextmanager
def _only_first_layer(text: nn.Module) -> Iterator[None]:
    layers = cast("nn.ModuleList", text.layers)
    text.layers = layers[:1]
    try:
        yield
    finally:
        text.layers = layers
