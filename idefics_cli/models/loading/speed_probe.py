"""A small text model in one format of weights: the time of its steps shows the speed of the format.

Its layers have the shape of those of SmolVLM-500M, the default model. Its kernels and its compiled
step are those of a plan.
"""

from __future__ import annotations

import inspect
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from idefics_cli.core.imports import import_bitsandbytes
from idefics_cli.core.types import LoadSpec
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.families.spec import find_family
from idefics_cli.models.loading.layers import ChosenKernels, install, quantize
from idefics_cli.models.loading.text_step import text_model_of

# A model reads all its weights for each token, so they do not stay in the caches of a processor.
# The weights of six layers take 43 MB in int4, more than the caches of most processors.
_LAYERS, _WIDTH, _KV_HEADS, _HEAD_WIDTH = 6, 960, 5, 64
# The head takes the same share of the weights as in SmolVLM-500M.
_VOCABULARY = 7680
_PROMPT_TOKENS = 128


@dataclass(slots=True)
class _LayerStates:
    """The KV states of one layer, for `TextStep`."""

    keys: Tensor
    values: Tensor


class _Numbered(Protocol):
    """What is set of an attention layer."""

    layer_idx: int


class SpeedProbe:
    """A text model with random weights in one format, with the kernels of a plan.

    Args:
        spec: Dtype, quantization and kernels.
        machine: This machine.
        layers: Number of layers.
    """

    def __init__(self, spec: LoadSpec, machine: Machine, *, layers: int = _LAYERS) -> None:
        kernels = ChosenKernels(spec.kernels, machine)
        family = replace(find_family(spec.family), text_path="model")
        dtype = getattr(torch, spec.dtype)
        model = _random_model(dtype, layers)
        if kernels.quantizes:
            quantize(model, kernels, family, dtype=dtype)
        elif spec.quantization == "4bit":
            _quantize_to_nf4(model, dtype)
        install(model, kernels, family)
        attention = kernels.attention() or spec.attention
        cast("LlamaForCausalLM", model).set_attn_implementation(attention)
        self._model = model.eval()
        self._text = model.get_submodule("model")
        text = text_model_of(cast("Model", model), family)
        self._step = None if text is None else kernels.step(text)
        generator = torch.Generator().manual_seed(1)
        shape = (1, _PROMPT_TOKENS, _WIDTH)
        self._prompt = torch.empty(shape).normal_(0, 1, generator=generator).to(dtype)
        states = (1, _KV_HEADS, 2 * _PROMPT_TOKENS, _HEAD_WIDTH)
        self._states = [
            _LayerStates(torch.zeros(states, dtype=dtype), torch.zeros(states, dtype=dtype))
            for _ in range(layers)
        ]
        taken = inspect.signature(type(self._text).forward).parameters
        self._cache_name = "cache" if "cache" in taken else "past_key_values"
        self._cache = DynamicCache()

    @torch.inference_mode()
    def read_prompt(self) -> None:
        """Run a prompt of 128 tokens through the model."""
        self._cache = DynamicCache()
        hidden = self._run(self._prompt)
        self._head(hidden[:, -1])

    @torch.inference_mode()
    def decode(self) -> None:
        """Run one token through the model, after `read_prompt`."""
        token = self._prompt[:, 0]
        if self._step is not None:
            self._step(token, [_PROMPT_TOKENS], self._states)
            return
        self._head(self._run(token[:, None])[:, -1])

    def _run(self, tokens: Tensor) -> Tensor:
        found = self._text(inputs_embeds=tokens, use_cache=True, **{self._cache_name: self._cache})
        return cast("Tensor", found.last_hidden_state)

    def _head(self, hidden: Tensor) -> None:
        self._model.get_submodule("lm_head")(hidden)


def _random_model(dtype: torch.dtype, layers: int) -> nn.Module:
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_WIDTH,
        intermediate_size=2560,
        num_hidden_layers=layers,
        num_attention_heads=_WIDTH // _HEAD_WIDTH,
        num_key_value_heads=_KV_HEADS,
        head_dim=_HEAD_WIDTH,
        max_position_embeddings=4 * _PROMPT_TOKENS,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(dtype).to_empty(device="cpu")
    # Its frequencies are no weights, so they must be computed again.
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    generator = torch.Generator().manual_seed(0)
    pool = torch.empty(1_000_003).normal_(0, 0.02, generator=generator).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            size = parameter.numel()
            if parameter.dim() == 1:
                parameter.fill_(1)
            else:
                parameter.copy_(pool.repeat(-(-size // len(pool)))[:size].view_as(parameter))
    return cast("nn.Module", model.eval())


def _quantize_to_nf4(model: nn.Module, dtype: torch.dtype) -> None:
    """Let bitsandbytes quantize the layers of *model* in place, as a plan for nf4 does."""
    import_bitsandbytes()
    from bitsandbytes.nn import Linear4bit, Params4bit

    layers = cast("nn.ModuleList", model.get_submodule("model.layers"))
    for holder in list(layers[0].modules()):
        for name, child in list(holder.named_children()):
            if type(child) is nn.Linear:
                layer = Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    compute_dtype=dtype,
                    compress_statistics=True,
                    quant_type="nf4",
                    device="meta",
                )
                weights = Params4bit(
                    child.weight.data,
                    requires_grad=False,
                    quant_type="nf4",
                    compress_statistics=True,
                )
                layer.weight = weights.to("cpu")
                setattr(holder, name, layer)
    # Quantizing every layer would take a second.
    for number in range(1, len(layers)):
        layers[number] = deepcopy(layers[0])
        cast("_Numbered", layers[number].self_attn).layer_idx = number
