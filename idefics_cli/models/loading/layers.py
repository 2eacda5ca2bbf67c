"""The text model's linear layers in 8 or 4 bit without bitsandbytes, and files that keep them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from idefics_cli.core.types import Progress, Quantization
from idefics_cli.models.kernels.int4 import kernel as int4_kernel
from idefics_cli.models.kernels.int4 import linear as int4
from idefics_cli.models.kernels.int4.compiled import CompiledInt4Linear
from idefics_cli.models.kernels.int4.linear import Int4Linear
from idefics_cli.models.kernels.int8.linear import Int8Linear
from idefics_cli.models.kernels.linear import SmallLinear

# Scores for every token of the vocabulary: read for each word, so 8 bit save a tenth of its time
# in the largest models, and rounding them costs next to nothing.
_HEAD = "lm_head"
_FILE = "layers.safetensors"
# Changed when a layer's numbers come to lie otherwise.
_LAYOUT = 3


class Layers:
    """Writes the layers of *model* that are quantized by us, and nothing else of it.

    Args:
        model: See `quantize`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def save_pretrained(self, save_directory: Path) -> None:
        """Write the layers to *save_directory*, which is made."""
        save_directory.mkdir(parents=True)
        tensors = {name: tensor.contiguous() for name, tensor in self._numbers()}
        save_file(tensors, save_directory / _FILE)

    @property
    def size_bytes(self) -> int:
        """How many bytes of numbers are written."""
        return sum(tensor.nbytes for _, tensor in self._numbers())

    def _numbers(self) -> Iterator[tuple[str, Tensor]]:
        for path, module in self._model.named_modules():
            if isinstance(module, SmallLinear):
                for name, tensor in module.numbers().items():
                    yield f"{path}.{name}", tensor


def open_layers(folder: Path) -> Mapping[str, Tensor]:
    """Return what `Layers` wrote to *folder*, mapped from the file: name and numbers.

    Raises:
        OSError, RuntimeError: If it cannot be read.
    """
    with safe_open(folder / _FILE, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # no dict


def quantize(
    model: nn.Module,
    quantization: Quantization,
    *,
    skipped: Sequence[str],
    dtype: torch.dtype,
    kept: Mapping[str, Tensor] | None = None,
    report: Progress | None = None,
) -> None:
    """Give *model* small weights, in place, and bring all that stays as it is to *dtype*.

    Layer by layer, so that a model whose weights are mapped from its files is never in memory
    as a whole. Layers whose shape 4 bit does not suit get 8, and so does the head.

    Args:
        model: On the CPU.
        quantization: "8bit" or "4bit".
        skipped: Full names of the modules to leave, with all that is in them; the head is not
            left, unless it is more than a linear layer.
        dtype: Of the rest.
        kept: The numbers of the layers, from `open_layers`, made from the same files; None makes
            them.
        report: Told how far it is, where they are made.

    Raises:
        KeyError: If *kept* lacks a layer.
    """
    places = list(_places(model, skipped))
    for number, (path, module, name) in enumerate(places):
        linear = getattr(module, name)
        wanted = _four_bit() if quantization == "4bit" and path != _HEAD else Int8Linear
        kind = wanted if wanted.fits(linear) else Int8Linear
        if kept is None:
            setattr(module, name, kind(linear))
            if report is not None:
                report("quantizing", (number + 1) / len(places))
        else:
            numbers = {part: kept[f"{path}.{part}"] for part in kind.NUMBERS}
            setattr(module, name, kind(linear, numbers))
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)


def layout() -> tuple[str | int, ...]:
    """Return what decides how the numbers lie in memory, and so in the files that keep them."""
    if _four_bit() is CompiledInt4Linear:
        return (_LAYOUT, "compiled")
    return (_LAYOUT, int4.block())


def _four_bit() -> type[SmallLinear]:
    return CompiledInt4Linear if int4_kernel.is_right() else Int4Linear


def _places(model: nn.Module, skipped: Sequence[str]) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the full name of each layer to quantize, what holds it, and its name there."""
    for path, module in model.named_modules():
        for name, child in module.named_children():
            full = f"{path}.{name}".lstrip(".")
            spared = any(full == skip or full.startswith(f"{skip}.") for skip in skipped)
            # IDEFICS-1 has a head of two parts, of which the second knows the new tokens.
            is_head = full == _HEAD and type(child) is nn.Linear
            if is_head or (isinstance(child, nn.Linear) and not spared):
                yield full, module, name
