"""What is trained: LoRA matrices beside the layers of some parts of a model, or their weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.imports import import_bitsandbytes
from idefics_cli.models.families.spec import FamilySpec, PartName
from idefics_cli.models.loading.training import keep_unpacked

if TYPE_CHECKING:
    from peft import LoraConfig

_NAME = "default"  # PEFT's own name of an adapter without a name
_KEY_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class LoraChoice:
    """The form of an adapter.

    Attributes:
        parts: Parts of the model whose linear layers get matrices.
        rank: Width of the matrices.
        alpha: Numerator of the scale; the scale is *alpha* / *rank*.
        dropout: Share of the inputs that is dropped in training, 0 to 1.
        is_dora: Whether the rows of each changed weight get lengths of their own (DoRA).
    """

    parts: tuple[PartName, ...] = ("text",)
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    is_dora: bool = False


@dataclass(frozen=True, slots=True)
class Targets:
    """What is trained in a model.

    Attributes:
        parts: The parts of the model.
        layers: Full names of the layers with LoRA matrices; empty if the weights are trained.
        parameters: The trained parameters by name, in float32.
    """

    parts: tuple[PartName, ...]
    layers: tuple[str, ...]
    parameters: Mapping[str, nn.Parameter]

    @property
    def weights(self) -> int:
        """Number of trained weights."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def moves_features(self) -> bool:
        """Whether the features of pictures change while the model is trained."""
        return self.parts != ("text",)


def layer_names(model: nn.Module, family: FamilySpec, parts: Sequence[PartName]) -> list[str]:
    """Return the full names of the linear layers of *parts*, in the order of the model."""
    pattern = re.compile(layer_pattern(family, parts))
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linear if pattern.fullmatch(name)]


def layer_pattern(family: FamilySpec, parts: Sequence[PartName]) -> str:
    """Return a regular expression for the full names of the linear layers of *parts*."""
    return "|".join(family.parts[part].layers for part in parts)


def insert_lora(model: nn.Module, family: FamilySpec, choice: LoraChoice) -> Targets:
    """Put LoRA matrices beside the layers of *choice*, and freeze everything else.

    The model keeps its class, so the family runs it as before.

    Raises:
        IdeficsError: If PEFT is not installed.
        RuntimeError: If PEFT chose other layers.
    """
    expected = layer_names(model, family, choice.parts)
    peft = import_peft()
    model.requires_grad_(False)
    peft.inject_adapter_in_model(
        lora_config(layer_pattern(family, choice.parts), choice), model, adapter_name=_NAME
    )
    model.eval()  # PEFT's new modules are in training mode
    keep_unpacked(model)
    found = [name for name, module in model.named_modules() if _is_lora_layer(module)]
    if found != expected:
        raise RuntimeError(f"{len(found)} layers have LoRA matrices and not {len(expected)}")
    parameters = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    for parameter in parameters.values():
        # Training needs float32: in bfloat16, a step of the usual learning rate would round to
        # nothing.
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return Targets(choice.parts, tuple(found), parameters)


def train_weights(model: nn.Module, family: FamilySpec, parts: Sequence[PartName]) -> Targets:
    """Let all weights of *parts* be trained in float32, and freeze everything else.

    Raises:
        RuntimeError: If weights are quantized.
    """
    model.requires_grad_(False)
    parameters: dict[str, nn.Parameter] = {}
    prefixes = tuple(f"{name}." for part in parts for name in family.parts[part].weights)
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes):
            if not parameter.is_floating_point():
                raise RuntimeError(f"{name} is quantized")
            # The weights are copied, because they may be mapped from the file of the checkpoint.
            parameter.data = parameter.data.to(torch.float32, copy=True)
            parameter.requires_grad_(True)
            parameters[name] = parameter
    return Targets(tuple(parts), (), parameters)


def lora_config(pattern: str, choice: LoraChoice, *, base: str | None = None) -> LoraConfig:
    """Return the settings of *choice* as PEFT takes them and writes them.

    Args:
        pattern: Regular expression for the layers; see `layer_pattern`.
        choice: The form of the adapter.
        base: Hub id or path of the model.
    """
    config: LoraConfig = import_peft().LoraConfig(
        r=choice.rank,
        lora_alpha=choice.alpha,
        lora_dropout=choice.dropout,
        use_dora=choice.is_dora,
        target_modules=pattern,
        base_model_name_or_path=base,
    )
    return config


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the LoRA matrices of *model* on the CPU, by the names of PEFT's files."""
    states = import_peft().get_peft_model_state_dict(
        model, adapter_name=_NAME, save_embedding_layers=False
    )
    # The states are copied, because training goes on while they are written to a file.
    return {
        f"{_KEY_PREFIX}{name}": tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in states.items()
    }


def import_peft() -> Any:
    """Return the module `peft`.

    Raises:
        IdeficsError: If it is not installed.
    """
    try:
        # PEFT imports bitsandbytes if it is installed.
        with suppress(ImportError):
            import_bitsandbytes()
        import peft
    except ImportError as error:
        raise IdeficsError(
            "training needs the package `peft`", hint="pip install 'idefics-cli[tune]'"
        ) from error
    return peft


def enable_checkpointing(model: nn.Module) -> None:
    """Let the layers of *model* drop their activations in training, and compute them again.

    This holds in `training_mode`.
    """
    # transformers 5.23 renamed this method, so both names are tried. With `use_reentrant=True`,
    # IDEFICS-1 would lose the gradients of its vision tower and only give a warning.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next(getattr(model, name) for name in names if hasattr(model, name))
    enable({"use_reentrant": False})


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Switch on the dropout of the LoRA matrices and activation checkpointing in the `with` block.

    All other modules stay in eval mode, so the model has no other dropout.

    Args:
        model: In eval mode.
    """
    # Activation checkpointing looks only at the flag `training` of the layer itself. So the modules
    # in the layer keep their flags, and stay in eval mode.
    changed = [
        module
        for name, module in model.named_modules()
        if ".lora_dropout" in name or _is_checkpointed(module)
    ]
    for module in changed:
        module.training = True
    try:
        yield
    finally:
        for module in changed:
            module.training = False


def _is_checkpointed(module: nn.Module) -> bool:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing


def _is_lora_layer(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)
