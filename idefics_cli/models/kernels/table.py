"""The table of kernels: for each, the parts of a model that it computes, and its requirements.

The table imports no torch, so that a plan can be made without it. To add a kernel, write its
module and add a row here. `linear.py` explains the words "row" and "widen".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol, cast

from idefics_cli.hardware.machine import Machine

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from idefics_cli.models.kernels.text_step.step import TextModel, TextStep

Part = Literal["text", "head", "connector", "vision", "mlp", "patches", "norm", "step", "attention"]
"""A field of `KernelChoice`."""
Weights = Literal["any", "float32", "bfloat16", "int8", "int4"]
"""Format of the weights that a kernel reads."""
DeviceKind = Literal["cpu", "cuda"]
"""Kind of the devices on which a kernel runs."""
Requirement = Callable[[Machine], str | None]
"""Returns why a machine lacks something, or None if it has it."""


class LayerKernel(Protocol):
    """A kernel that replaces a layer of a model; a class of layers implements it."""

    def passes_self_test(self) -> bool:
        """Whether the kernel can be used here and computes a small example correctly."""
        ...

    def layer_for(
        self,
        module: nn.Module,
        *,
        product_dtype: torch.dtype,
        numbers: Mapping[str, Tensor] | None = None,
    ) -> nn.Module | None:
        """Return a layer that computes what *module* computes, or None if the kernel does not fit.

        Args:
            module: On the CPU; not changed.
            product_dtype: Dtype to which quantized weights are widened for many rows.
            numbers: Quantized weights by name, if they were made earlier from the same weights;
                None quantizes the weights of *module*.

        Raises:
            KeyError: If *numbers* lacks a tensor.
        """
        ...


class AttentionKernel(Protocol):
    """A kernel for attention, which transformers calls in every layer.

    transformers knows it by the name of its row in the table.
    """

    def passes_self_test(self, device: str = "cpu") -> bool:
        """Whether the kernel can be used on *device* and computes small examples correctly."""
        ...

    def register(self) -> str:
        """Register the kernel in transformers and return its name; a second call is harmless."""
        ...


class StepKernel(Protocol):
    """A kernel that runs the newest tokens through a whole text model; a class implements it."""

    def __call__(self, text: TextModel) -> TextStep:
        """Return the decode step of *text*, for which `problem` returns None."""
        ...

    def problem(self, text: TextModel) -> str | None:
        """Return why the kernel cannot compute *text*, or None."""
        ...

    def passes_self_test(self) -> bool:
        """Whether the kernel can be used here and computes a small example correctly."""
        ...


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of `KERNELS`.

    Attributes:
        name: Key of the row.
        path: "module:name" of the `LayerKernel`, `StepKernel` or `AttentionKernel`.
        parts: The parts of a model for which the kernel is known to be faster.
        weights: Format of the weights that the kernel reads.
        requirements: Checks of what a machine must have.
        tolerance: Largest allowed error of the outputs for rows of float32: the norm of the
            difference from a float32 product with the same weights, relative to that product.
        summary: A sentence for users that says how the kernel computes.
        copies_weights: Whether the kernel keeps its own copy of the weights. If another module
            shares them, they are then in memory twice.
        smallest_weights: The kernel does not replace layers with fewer weights.
        device: Kind of the devices on which the kernel runs.
    """

    name: str
    path: str
    parts: frozenset[Part]
    weights: Weights
    requirements: tuple[Requirement, ...]
    tolerance: float
    summary: str
    copies_weights: bool = False
    smallest_weights: int = 0
    device: DeviceKind = "cpu"

    def problem(self, machine: Machine) -> str | None:
        """Return why *machine* cannot run the kernel, or would not gain from it, or None."""
        found = (requirement(machine) for requirement in self.requirements)
        return next((problem for problem in found if problem is not None), None)

    def passes_self_test(self, device: str = "cpu") -> bool:
        """Whether the kernel can be used on *device* and computes small examples correctly."""
        if "attention" in self.parts:
            return self.attention_kernel().passes_self_test(device)
        if "step" in self.parts:
            return self.step_kernel().passes_self_test()
        return self.layer_kernel().passes_self_test()

    def layer_kernel(self) -> LayerKernel:
        """Import the kernel, which imports torch."""
        return cast("LayerKernel", self._import())

    def step_kernel(self) -> StepKernel:
        """Import the kernel, which imports torch."""
        return cast("StepKernel", self._import())

    def attention_kernel(self) -> AttentionKernel:
        """Import the kernel, which imports torch."""
        return cast("AttentionKernel", self._import())

    def _import(self) -> object:
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)


def compiler_problem(machine: Machine) -> str | None:
    """Return why kernels cannot be compiled on *machine*, or None."""
    if machine.platform != "Linux x86_64":
        return "kernels are compiled on x86 Linux only"
    if not {"avx2", "fma"} <= machine.cpu_flags:
        return "the processor lacks AVX2 or FMA"
    return None if machine.has("llvmlite") else "the package llvmlite is not installed"


def native_bf16_problem(machine: Machine) -> str | None:
    """Return why *machine* has no x86 processor with bfloat16 instructions, or None if it has one.

    oneDNN's bfloat16 kernels were measured on x86 only, so other processors count as a problem.
    """
    if machine.is_x86 and machine.cpu_bf16:
        return None
    return "the processor has no bfloat16 instructions of x86"


def emulated_bf16_problem(machine: Machine) -> str | None:
    """Return why torch does not emulate bfloat16 with x86 vectors on *machine*, or None if so."""
    if native_bf16_problem(machine) is None:
        return "the processor multiplies bfloat16 natively"
    return vector_problem(machine)


def vector_problem(machine: Machine) -> str | None:
    """Return why torch's x86 vector kernels do not run on *machine*, or None if they do.

    Where they do not run, torch has slow replacements.
    """
    has_vectors = machine.torch_cpu_capability in ("AVX512", "AVX2")
    return None if has_vectors else "torch uses no AVX2 or AVX512 instructions"


_LINEAR: frozenset[Part] = frozenset({"text", "head", "connector", "vision"})
_QUANTIZED: frozenset[Part] = frozenset({"text", "head"})
# In layers with at least this many weights, reading them takes most of the time for a few rows.
_LARGE_WEIGHTS = 2**20
_ROOM = "idefics_cli.models.kernels."

_ROWS = (
    Kernel(
        "bf16_12bit",
        _ROOM + "bf16_12bit.linear:CompactLinear",
        frozenset({"text", "head"}),
        "bfloat16",
        (vector_problem, compiler_problem),
        tolerance=4e-3,
        summary="weights are kept in 12 bits without loss",
        copies_weights=True,
    ),
    Kernel(
        "bf16_12bit_connector",
        _ROOM + "bf16_12bit.linear:CompactLinear",
        # A connector multiplies many rows. Where the processor multiplies bfloat16 itself, 12 bits
        # make it no faster.
        frozenset({"connector"}),
        "bfloat16",
        (emulated_bf16_problem, compiler_problem),
        tolerance=4e-3,
        summary="weights are kept in 12 bits without loss",
        copies_weights=True,
        smallest_weights=_LARGE_WEIGHTS,
    ),
    Kernel(
        "float32_12bit",
        _ROOM + "bf16_12bit.linear:ExactCompactLinear",
        frozenset({"text", "head"}),
        "float32",
        # Where the processor multiplies bfloat16, the kernel rounds the activations to it.
        (emulated_bf16_problem, compiler_problem),
        tolerance=1e-5,
        summary="weights that are bfloat16 numbers are kept in 12 bits without loss",
        copies_weights=True,
    ),
    Kernel(
        "bf16_packed",
        _ROOM + "packed:PackedLinear",
        # A picture has hundreds of patches; a product of so many rows gains nothing from packing.
        frozenset({"text", "head"}),
        "bfloat16",
        (native_bf16_problem,),
        tolerance=4e-3,
        summary="bfloat16 weights are laid out for oneDNN once",
        copies_weights=True,
    ),
    Kernel(
        "bf16_widened",
        _ROOM + "widened:WidenedLinear",
        _LINEAR,
        "bfloat16",
        (emulated_bf16_problem,),
        tolerance=4e-3,
        summary="few rows are multiplied one by one, many rows in float32",
    ),
    Kernel(
        "bf16_widened_patches",
        _ROOM + "widened:WidenedConv2d",
        frozenset({"patches"}),
        "bfloat16",
        (emulated_bf16_problem,),
        tolerance=4e-3,
        summary="in float32",
    ),
    Kernel(
        "bf16_gelu_mlp",
        _ROOM + "gelu_mlp:GeluMlp",
        frozenset({"mlp"}),
        "bfloat16",
        (native_bf16_problem,),
        tolerance=4e-3,
        summary="the product before an activation computes the activation, too",
    ),
    Kernel(
        "compiled_gelu_mlp",
        _ROOM + "gelu:CompiledGeluMlp",
        frozenset({"mlp"}),
        "any",
        (compiler_problem,),
        tolerance=1e-6,
        summary="the activation is computed in one pass",
    ),
    Kernel(
        "int4_compiled",
        _ROOM + "int4.compiled:CompiledInt4Linear",
        frozenset({"text"}),
        "int4",
        (compiler_problem,),
        tolerance=0.012,
        summary="4-bit numbers in groups of 32, by a kernel compiled for this processor",
    ),
    Kernel(
        "int4_torch",
        _ROOM + "int4.linear:TorchInt4Linear",
        frozenset({"text"}),
        "int4",
        (vector_problem,),
        tolerance=6e-3,
        summary="4-bit numbers in groups of 32, few rows by torch's kernel",
    ),
    Kernel(
        "int4_widened",
        _ROOM + "int4.linear:Int4Linear",
        frozenset({"text"}),
        "int4",
        (),
        tolerance=1e-6,
        summary="4-bit numbers in groups of 32, widened for every product",
    ),
    Kernel(
        "int8_compiled",
        _ROOM + "int8.linear:CompiledInt8Linear",
        _QUANTIZED,
        "int8",
        (compiler_problem,),
        tolerance=1e-4,
        summary="8-bit numbers, few rows by a kernel compiled for this processor",
    ),
    Kernel(
        "int8_patches",
        _ROOM + "int8.linear:CompiledInt8Linear",
        # Where the processor multiplies bfloat16 itself, 8 bits make products of many rows slower.
        frozenset({"vision"}),
        "int8",
        (emulated_bf16_problem, compiler_problem),
        tolerance=1e-4,
        summary="8-bit numbers, multiplied by numbers of 16 bits",
    ),
    Kernel(
        "int8_torch",
        _ROOM + "int8.linear:TorchInt8Linear",
        _QUANTIZED,
        "int8",
        (),
        tolerance=6e-3,
        summary="8-bit numbers, few rows by torch's kernel",
    ),
    Kernel(
        "int8_widened",
        _ROOM + "int8.linear:Int8Linear",
        _QUANTIZED,
        "int8",
        (),
        tolerance=1e-6,
        summary="8-bit numbers, widened for every product",
    ),
    Kernel(
        "rms_norm",
        _ROOM + "rms_norm:CpuRMSNorm",
        frozenset({"norm"}),
        "any",
        (),
        tolerance=1e-6,
        summary="fewer passes over the activations",
    ),
    Kernel(
        "text_step",
        _ROOM + "text_step.step:TextStep",
        frozenset({"step"}),
        "any",
        (compiler_problem,),
        tolerance=1e-5,
        summary="one call of compiled code computes each token of a reply",
    ),
    Kernel(
        "cpu_sdpa_tiled",
        _ROOM + "attention:TILED",
        frozenset({"attention"}),
        "bfloat16",
        (native_bf16_problem,),
        tolerance=1e-5,
        summary="exact; the text model computes heads that share keys together, the vision model "
        "takes large pictures in blocks",
    ),
    Kernel(
        "cpu_sdpa",
        _ROOM + "attention:PADDED",
        frozenset({"attention"}),
        "any",
        (),
        tolerance=1e-5,
        summary="exact; the text model computes heads that share keys together, the vision model "
        "pads its heads for large pictures",
    ),
    Kernel(
        "cuda_split_keys",
        _ROOM + "split_keys:SPLIT_KEYS",
        frozenset({"attention"}),
        "any",
        (),
        tolerance=1e-5,
        summary="exact; recorded decode steps divide the keys over the whole GPU, and torch "
        "computes the rest",
        device="cuda",
    ),
)

KERNELS: Mapping[str, Kernel] = MappingProxyType({row.name: row for row in _ROWS})
"""All kernels by name. Among kernels for the same part and format of weights, the best is first."""
ATTENTION_KERNELS = tuple(row.name for row in _ROWS if "attention" in row.parts)
