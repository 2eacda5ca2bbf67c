"""LoRA adapters: merged into the weights of a model, or computed beside layers of bitsandbytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from idefics_cli.core.adapters import LoraAdapter
from idefics_cli.core.errors import ModelError
from idefics_cli.models.hub.adapters import CONFIG, WEIGHTS, misfit_error, read_settings

_PREFIX = "base_model.model."
_DOWN, _UP, _UP_BIAS, _LENGTHS = "lora_A", "lora_B", "lora_B.bias", "lora_magnitude_vector"
_PART = re.compile(rf"(.+)\.({_DOWN}|{_UP}|{_LENGTHS})(?:\.(weight|bias))?")
_MERGE_FIRST = "`--quantization none` works; or merge it into its model with PEFT"
Scale: TypeAlias = Callable[[str, int], float]
"""Takes the full name of a layer and the rank of its matrices; returns the factor."""


class BesideLayer(nn.Module):
    """A quantized layer, and the product of an adapter that is added to its result.

    Merging into weights of 4 bit would round most of the adapter away.

    Args:
        layer: A layer of bitsandbytes.
        down: Matrix (rank, inputs) of the adapter.
        up: Matrix (outputs, rank) of the adapter, with its scale.
    """

    def __init__(self, layer: nn.Module, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(up, requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the results (..., outputs) for *inputs* (..., inputs)."""
        result: Tensor = self.layer(inputs)
        added = nn.functional.linear(inputs.to(self.down.dtype), self.down)
        return result + nn.functional.linear(added, self.up).to(result.dtype)


@dataclass(frozen=True, slots=True)
class _Lora:
    """What an adapter has for one layer, in float32 on the device of the layer.

    Attributes:
        name: Full name of the layer.
        down: Matrix (rank, inputs).
        up: Matrix (outputs, rank).
        scale: Factor of their product.
        lengths: Lengths of the rows of the result (DoRA), or None.
        bias: What is added to the bias, after *scale*; or None.
    """

    name: str
    down: Tensor
    up: Tensor
    scale: float
    lengths: Tensor | None
    bias: Tensor | None


def apply_adapter(model: nn.Module, adapter: LoraAdapter) -> None:
    """Merge *adapter* into *model*, whose layers are those of transformers.

    Layers that bitsandbytes has quantized keep their weights, and get a `BesideLayer`. Products are
    computed in float32, whatever the dtype of the weights is.

    Raises:
        ModelError: If the adapter is broken, or a tensor of it does not fit the model, which is
            not usable then.
    """
    settings = read_settings(Path(adapter.folder), adapter.name)
    changes, replaced = _read_tensors(adapter)
    modules, weights = dict(model.named_modules()), dict(model.named_parameters())
    for name, tensors in changes.items():
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear):
            raise _does_not_fit(adapter, f"it has no linear layer {name}")
        if layer.weight.is_meta:
            raise ModelError(
                f"the adapter `{adapter.name}` needs {name}, which no device holds now",
                hint="`--quantization 4bit` needs less memory; `--device cpu` works, too",
            )
        if settings.is_dora != (_LENGTHS in tensors):
            raise _broken(adapter, f"{CONFIG} does not say what {name} is")
        lora = _lora_of(name, tensors, layer, settings.scale, adapter)
        if layer.weight.is_floating_point():
            _merge(layer, lora)
        elif lora.lengths is not None or lora.bias is not None:
            raise ModelError(
                f"the adapter `{adapter.name}` is more than two matrices for {name}, which is "
                "quantized",
                hint=_MERGE_FIRST,
            )
        else:
            _replace(model, name, _beside(layer, lora))
    for name, tensor in replaced.items():
        known = weights.get(name)
        if known is None or known.shape != tensor.shape or not known.is_floating_point():
            raise _does_not_fit(adapter, f"it has no weight {name} of this shape")
        _replace(model, name, nn.Parameter(tensor.to(known), requires_grad=False))


def _read_tensors(adapter: LoraAdapter) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return the tensors for each layer by their kind, and the weights that replace others."""
    try:
        tensors = load_file(Path(adapter.folder, WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise _broken(adapter, f"{WEIGHTS} cannot be read: {error}") from error
    changes: dict[str, dict[str, Tensor]] = {}
    replaced: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise _broken(adapter, f"`{key}` has numbers that are not finite")
        name = key.removeprefix(_PREFIX)
        if (part := _PART.fullmatch(name)) is None:
            replaced[name] = tensor
        else:
            kind = f"{part[2]}.bias" if part[3] == "bias" else part[2]
            changes.setdefault(part[1], {})[kind] = tensor
    if not tensors:
        raise _broken(adapter, f"{WEIGHTS} is empty")
    return changes, replaced


def _lora_of(
    name: str, tensors: Mapping[str, Tensor], layer: nn.Linear, scale: Scale, adapter: LoraAdapter
) -> _Lora:
    if not {_DOWN, _UP} <= tensors.keys() <= {_DOWN, _UP, _UP_BIAS, _LENGTHS}:
        raise _broken(adapter, f"{name} has {', '.join(sorted(tensors))}")
    given = {
        kind: tensor.to(layer.weight.device, torch.float32) for kind, tensor in tensors.items()
    }
    rank = given[_DOWN].shape[0]
    outputs = (layer.out_features,)
    expected = {
        _DOWN: (rank, layer.in_features),
        _UP: (*outputs, rank),
        _UP_BIAS: outputs,
        _LENGTHS: outputs,
    }
    for kind, tensor in given.items():
        if tuple(tensor.shape) != expected[kind] or not rank:
            shapes = ["x".join(map(str, each)) for each in (expected[kind], tensor.shape)]
            raise _does_not_fit(adapter, f"for {name}, {kind} must be {shapes[0]}, not {shapes[1]}")
    return _Lora(
        name,
        given[_DOWN],
        given[_UP],
        scale(name, rank),
        given.get(_LENGTHS),
        given.get(_UP_BIAS),
    )


def _merge(layer: nn.Linear, lora: _Lora) -> None:
    weight = layer.weight.to(torch.float32) + lora.scale * (lora.up @ lora.down)
    if lora.lengths is not None:
        # DoRA gives each row the length that the adapter has learned (equation 5 of "DoRA:
        # Weight-Decomposed Low-Rank Adaptation").
        now = torch.linalg.vector_norm(weight, dim=1)
        weight *= (lora.lengths / now).unsqueeze(1)
    # This is a new tensor, because the old one may be mapped from a file, or shared with an
    # embedding, which the adapter does not change.
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if lora.bias is not None:
        bias = lora.scale * lora.bias
        if layer.bias is not None:
            bias = bias + layer.bias
        layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def _beside(layer: nn.Linear, lora: _Lora) -> BesideLayer:
    dtype = torch.bfloat16 if layer.weight.device.type == "cuda" else torch.float32
    return BesideLayer(layer, lora.down.to(dtype), (lora.scale * lora.up).to(dtype))


def _replace(model: nn.Module, name: str, part: nn.Module | nn.Parameter) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, part)


def _broken(adapter: LoraAdapter, fault: str) -> ModelError:
    return ModelError(
        f"the adapter `{adapter.name}` is broken: {fault}", hint="copy or download it again"
    )


def _does_not_fit(adapter: LoraAdapter, fault: str) -> ModelError:
    return misfit_error(adapter, "this model", fault)
