"""The replacement of a model's layers by those of the kernels that a plan names."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import KernelChoice, Progress
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.families.spec import FamilySpec
from idefics_cli.models.kernels.linear import QuantizedLinear
from idefics_cli.models.kernels.table import KERNELS, Kernel, LayerKernel, Part, Weights
from idefics_cli.models.kernels.text_step.step import TextModel, TextStep
from idefics_cli.models.loading.mapped_pages import MappedPages

_log = logging.getLogger(__name__)
_HEAD = "lm_head"
_FILE = "layers.safetensors"
# Version of the layout of quantized weights. Whoever changes the layout must raise it by 1, so that
# files in an older layout are not read.
_LAYOUT = 4


class ChosenKernels:
    """The kernels that a plan names, checked on this machine.

    Args:
        choice: The names of the kernels.
        machine: This machine, from `probe_processor`.
        device: The device of the model.
        kernels: The table of all kernels.

    Raises:
        ModelError: If the machine cannot run one of them.
    """

    def __init__(
        self,
        choice: KernelChoice,
        machine: Machine,
        *,
        device: str = "cpu",
        kernels: Mapping[str, Kernel] = KERNELS,
    ) -> None:
        self._choice, self._kernels, self._device = choice, kernels, device
        self._passed: dict[str, bool] = {}
        for name in choice.names:
            problem = kernels[name].problem(machine) if name in kernels else "it is unknown"
            if problem is not None:
                raise ModelError(
                    f"the kernel `{name}` cannot run here: {problem}",
                    hint="the plan was made for another machine; plan on this one",
                )

    @property
    def quantizes(self) -> bool:
        """Whether the kernels of the text model read weights that this tool quantized."""
        return self._has_kernel("text", "int8", "int4")

    @property
    def packs(self) -> bool:
        """Whether kernels of a float32 model keep weights in 12 bits that are bfloat16 numbers."""
        return self._has_kernel("text", "float32")

    def layout(self) -> tuple[str | int | None, ...]:
        """Return a key of the layout of quantized weights in memory, which their files share."""
        parts: tuple[Part, ...] = ("vision",) if self._has_kernel("vision", "int8") else ()
        for _, kernel in self._of_part("text"):
            if isinstance(kernel, type) and issubclass(kernel, QuantizedLinear):
                return (_LAYOUT, kernel.layout(), *parts)
        return (_LAYOUT, *parts)

    def attention(self) -> str | None:
        """Register the attention kernel, and return its name in transformers.

        Returns:
            None if there is no kernel, or if it fails its self-test; then a warning is logged.
        """
        name = self._choice.attention
        if name is None or not self._passes(name, "`sdpa`"):
            return None
        return self._kernels[name].attention_kernel().register()

    def step(self, text: TextModel) -> TextStep | None:
        """Return the decode step of *text*; None if the plan has no kernel for it.

        None too if the kernel of the plan does not fit *text*; then a warning is logged.
        """
        for name in self._choice.step:
            kernel = self._kernels[name].step_kernel()
            if not self._passes(name, "torch"):
                continue
            if (problem := kernel.problem(text)) is None:
                return kernel(text)
            # If the layers are others than planned, a warning has told why already.
            if all(self._passed.values()):
                _log.warning("the kernel `%s` does not fit: %s; torch replaces it", name, problem)
        return None

    def layer_for(
        self,
        part: Part,
        module: nn.Module,
        *,
        is_shared: bool = False,
        numbers: Mapping[str, Tensor] | None = None,
    ) -> nn.Module | None:
        """Return the layer that replaces *module*; None if *module* stays.

        Args:
            part: The part of the model to which *module* belongs.
            module: A layer of the model; not changed.
            is_shared: Whether another module holds the same weights.
            numbers: Quantized weights from an earlier start; None quantizes the weights.

        Raises:
            KeyError: If *numbers* lacks a tensor.
        """
        weight, dtype = getattr(module, "weight", None), self._choice.product_dtype
        size = weight.numel() if isinstance(weight, Tensor) else 0
        for row, kernel in self._of_part(part):
            if size < row.smallest_weights or (is_shared and row.copies_weights):
                continue
            layer = kernel.layer_for(module, product_dtype=getattr(torch, dtype), numbers=numbers)
            if layer is not None:
                return layer
        return None

    def _has_kernel(self, part: Part, *formats: Weights) -> bool:
        names: tuple[str, ...] = getattr(self._choice, part)
        return any(self._kernels[name].weights in formats for name in names)

    def _of_part(self, part: Part) -> Iterator[tuple[Kernel, LayerKernel]]:
        """Yield the kernels for *part* that pass their self-test; log a warning for the others."""
        names: tuple[str, ...] = getattr(self._choice, part)
        for name in names:
            row = self._kernels[name]
            kernel = row.layer_kernel()
            rest = names[names.index(name) + 1 :]
            if self._passes(name, f"`{rest[0]}`" if rest else "torch"):
                yield row, kernel

    def _passes(self, name: str, other: str) -> bool:
        """Whether the kernel *name* passes its self-test; if not, warn once that *other* runs."""
        if name not in self._passed:
            self._passed[name] = self._kernels[name].passes_self_test(self._device)
            if not self._passed[name]:
                _log.warning("the kernel `%s` fails its self-test; %s replaces it", name, other)
        return self._passed[name]


class KeptLayers:
    """The quantized layers of a model, which can be written to a file.

    Args:
        model: The model, after `quantize`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def save_pretrained(self, save_directory: Path) -> None:
        """Write the layers to *save_directory*, which must not exist yet."""
        save_directory.mkdir(parents=True)
        tensors = {name: tensor.contiguous() for name, tensor in self._numbers()}
        save_file(tensors, save_directory / _FILE)

    @property
    def size_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for _, tensor in self._numbers())

    def _numbers(self) -> Iterator[tuple[str, Tensor]]:
        for path, module in self._model.named_modules():
            if isinstance(module, QuantizedLinear):
                for name, tensor in module.numbers().items():
                    yield f"{path}.{name}", tensor


def open_layers(folder: Path) -> Mapping[str, Tensor]:
    """Return the tensors that `KeptLayers` wrote to *folder*, by full name.

    The tensors are mapped from the file, so they take no memory before they are used.

    Raises:
        OSError, RuntimeError: If the file cannot be read.
    """
    with safe_open(folder / _FILE, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # not a dict


def quantize(
    model: nn.Module,
    chosen: ChosenKernels,
    family: FamilySpec,
    *,
    dtype: torch.dtype,
    kept: Mapping[str, Tensor] | None = None,
    report: Progress | None = None,
) -> None:
    """Quantize the text model, the head and, if the plan has a kernel for it, the vision model.

    The rest of *model* is converted to *dtype*. This goes layer by layer, so that a model whose
    weights are mapped from its files is never in memory as a whole.

    Args:
        model: On the CPU; changed in place.
        chosen: Kernels for quantized weights.
        family: The family of the model. A head is quantized if it is a plain linear layer.
        dtype: Dtype of all other weights.
        kept: Quantized weights from `open_layers`, made from the same files; None quantizes.
        report: Called with the share of the layers that is quantized, if *kept* is None.

    Raises:
        KeyError: If *kept* lacks a layer.
        ModelError: If no kernel fits a layer of the text model.
    """
    parts = ("text", "head", "vision")
    positions = [each for each in _positions(model, family) if each.part in parts]
    holders, pages = _holders(model), MappedPages()
    for count, position in enumerate(positions, start=1):
        numbers = None if kept is None else _Numbers(kept, position.path)
        layer = chosen.layer_for(position.part, position.module, numbers=numbers)
        if layer is None and position.part != "vision":
            raise ModelError(f"no kernel of the plan fits the layer `{position.path}`")
        if layer is not None:
            _replace(position, layer, holders, pages)
        if kept is None and report is not None:
            report("quantizing", count / len(positions))
    _convert(model, dtype)


def pack(
    model: nn.Module, chosen: ChosenKernels, family: FamilySpec, *, dtype: torch.dtype
) -> None:
    """Keep the text model and the head of *model* in 12 bits, and convert the rest to *dtype*.

    Weights that are no bfloat16 numbers belong to the rest. As `quantize`, this changes *model* in
    place, layer by layer.

    Args:
        model: On the CPU, in the dtype of its files.
        chosen: Kernels for weights that are bfloat16 numbers.
        family: The family of the model.
        dtype: Dtype of all other weights.
    """
    install(model, chosen, family, parts=("text", "head"))
    _convert(model, dtype)


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert all parameters of *model* to *dtype*."""
    pages = MappedPages()
    for parameter in model.parameters():
        former = parameter.data
        parameter.data = former.to(dtype)
        if former.dtype != dtype:
            pages.give_back(former)


def install(
    model: nn.Module,
    chosen: ChosenKernels,
    family: FamilySpec,
    *,
    parts: Sequence[Part] = get_args(Part),
) -> None:
    """Replace the layers of *model* in place by those of the kernels of the plan.

    Args:
        model: On the CPU, in the dtype of the plan.
        chosen: The kernels.
        family: The family of the model.
        parts: The parts of the model whose layers are replaced.
    """
    holders, pages = _holders(model), MappedPages()
    # Layers within another layer come first, so that it holds what replaced them.
    positions = [each for each in _positions(model, family) if each.part in parts]
    for position in reversed(positions):
        module = position.module
        is_shared = holders[id(getattr(module, "weight", None))] > 1
        layer = chosen.layer_for(position.part, module, is_shared=is_shared)
        if layer is not None:
            _replace(position, layer, holders, pages)


def _holders(model: nn.Module) -> Counter[int]:
    """Return how many modules hold each parameter, by the id of the parameter."""
    return Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )


def _replace(
    position: _Position, layer: nn.Module, holders: Counter[int], pages: MappedPages
) -> None:
    """Put *layer* at *position*, and give back the memory of a weight that nothing uses now."""
    weight = getattr(position.module, "weight", None)
    setattr(position.holder, position.name, layer)
    if not isinstance(weight, Tensor) or holders[id(weight)] > 1:
        return
    places = {each.data_ptr() for each in (*layer.parameters(), *layer.buffers())}
    if weight.data_ptr() not in places:
        pages.give_back(weight)


class _Position(NamedTuple):
    """The place of a layer: its name in the module that holds it.

    It refers to the holder and not to the layer, so that a list of positions does not keep
    replaced layers in memory.
    """

    path: str
    holder: nn.Module
    name: str
    part: Part

    @property
    def module(self) -> nn.Module:
        return self.holder.get_submodule(self.name)


def _positions(model: nn.Module, family: FamilySpec) -> Iterator[_Position]:
    """Yield the position of every layer that a kernel may replace."""
    for path, holder in model.named_modules():
        for name, child in holder.named_children():
            full = f"{path}.{name}".lstrip(".")
            part = _part_of(full, child, family)
            if part is not None:
                yield _Position(full, holder, name, part)


def _part_of(path: str, module: nn.Module, family: FamilySpec) -> Part | None:
    """Return the part of the model to which *module* belongs; None if no kernel computes it."""
    if isinstance(module, nn.Conv2d):
        return "patches"
    if type(module).__name__ in family.rms_norms:
        return "norm"
    if hasattr(module, "fc1") and _is_within(path, family.patch_modules):
        return "mlp"
    # The exact type is required, because subclasses of `nn.Linear` may do more than a product.
    if type(module) is not nn.Linear:
        return None
    if path == _HEAD:
        return "head"
    if _is_within(path, family.patch_modules):
        return "vision"
    return "connector" if _is_within(path, family.unquantized) else "text"


def _is_within(path: str, modules: Sequence[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)


class _Numbers(Mapping[str, Tensor]):
    """The kept tensors of one layer, by their names within the layer.

    Args:
        kept: Tensors by full name.
        path: Full name of the layer.
    """

    def __init__(self, kept: Mapping[str, Tensor], path: str) -> None:
        self._kept, self._prefix = kept, f"{path}."

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        names = (name for name in self._kept if name.startswith(self._prefix))
        return (name.removeprefix(self._prefix) for name in names)

    def __len__(self) -> int:
        return sum(1 for _ in self)
