"""The choice of the kernels that compute a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from idefics_cli.core.types import KernelChoice, LoadSpec
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import ModelFacts
from idefics_cli.models.kernels.table import KERNELS, Kernel, Part, Weights, native_bf16_problem
from idefics_cli.models.planning.decoding import graphs_problem, step_problem
from idefics_cli.models.planning.placement import Placement
from idefics_cli.models.planning.quantization import is_own

_IN_12_BITS = ("bf16_12bit", "float32_12bit")


def choose_kernels(
    spec: LoadSpec,
    machine: Machine,
    *,
    is_stored: bool = False,
    kernels: Mapping[str, Kernel] = KERNELS,
) -> KernelChoice:
    """Return the kernels for the model of *spec*; none if it is not on one CPU or CUDA GPU.

    Args:
        spec: All other choices.
        machine: Where the model runs.
        is_stored: Whether the files of the model hold weights that bitsandbytes made.
        kernels: The kernels there are, in the order of preference.
    """
    kind = spec.device.partition(":")[0]
    if kind not in ("cpu", "cuda") or spec.device_map is not None:
        return KernelChoice()
    table = _Usable(kernels, machine, kind)
    if kind == "cuda":
        return _on_gpu(spec, table)
    plain: tuple[Weights, ...] = () if spec.dtype == "float16" else (spec.dtype,)
    own = not is_stored and is_own(spec.quantization, spec.device, format_4bit=spec.format_4bit)
    text, head = _text_and_head(spec, table, plain, own=own)
    patches: tuple[Weights, ...] = ("int8",) if own else ()
    is_native = spec.dtype == "bfloat16" and native_bf16_problem(machine) is None
    return KernelChoice(
        text=text,
        head=head,
        connector=table.names("connector", *plain),
        # The vision model has 8 bits at least: rounding a picture costs more than rounding words.
        vision=table.names("vision", *patches, *plain),
        mlp=table.names("mlp", *plain, "any"),
        patches=table.names("patches", *plain),
        norm=table.names("norm", "any"),
        step=table.steps(spec, is_stored=is_stored),
        attention=_attention(spec, table, plain),
        # Other processors emulate 16 bit, which takes up to 4 times as long.
        product_dtype="bfloat16" if is_native else "float32",
    )


def packs_weights(
    option: Placement, facts: ModelFacts, machine: Machine, *, left_out: Collection[str] = ()
) -> bool:
    """Whether the weights of the text model of *option* are kept in 12 bits from the start.

    Args:
        option: A way to run the model.
        facts: What is known about the model.
        machine: Where the model runs.
        left_out: Kernels that compute wrongly there.
    """
    if (option.device, option.quantization) != ("cpu", "none") or option.dtype == "float16":
        return False
    # Files in another dtype are converted as a whole first. An adapter changes the weights, which
    # are then no bfloat16 numbers, or are changed in 16 bits first.
    if facts.files_dtype != "bfloat16" or facts.adapter is not None:
        return False
    names = _Usable(KERNELS, machine, "cpu").names("text", option.dtype)
    return next((name for name in names if name not in left_out), None) in _IN_12_BITS


def _on_gpu(spec: LoadSpec, table: _Usable) -> KernelChoice:
    # The attention of this tool is for recorded steps.
    is_8bit = spec.quantization == "8bit"
    if not spec.uses_graphs or graphs_problem(spec.device, is_8bit=is_8bit) is not None:
        return KernelChoice()
    return KernelChoice(attention=_attention(spec, table, ()))


def _attention(spec: LoadSpec, table: _Usable, plain: tuple[Weights, ...]) -> str | None:
    """Return the kernel for attention; None if the user asked for another attention."""
    names = table.names("attention", *plain, "any") if spec.attention == "sdpa" else ()
    return names[0] if names else None


def _text_and_head(
    spec: LoadSpec, table: _Usable, plain: tuple[Weights, ...], *, own: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the kernels of the text model and of the head.

    Args:
        spec: All other choices.
        table: The kernels there are.
        plain: Formats of weights that are not quantized and have kernels.
        own: Whether kernels of this tool compute the quantized weights.
    """
    if spec.quantization == "none":
        return table.names("text", *plain), table.names("head", *plain)
    if not own:
        # bitsandbytes brings its own layers for the text model, and does not quantize the head.
        # The head then gets the kernels of the connector, which is not quantized either.
        return (), table.names("connector", *plain)
    # A text layer whose shape does not suit 4 bits gets 8 bits. The head, which computes the
    # logits, gets 8 bits too: rounding it costs hardly any quality, and because it is read for
    # every token, 8 bits save a tenth of the time in the largest models.
    formats: tuple[Weights, ...] = ("int4", "int8") if spec.quantization == "4bit" else ("int8",)
    return table.names("text", *formats), table.names("head", "int8")


@dataclass(frozen=True, slots=True)
class _Usable:
    """The kernels that a machine can run on one kind of device."""

    kernels: Mapping[str, Kernel]
    machine: Machine
    kind: str

    def names(self, part: Part, *formats: Weights) -> tuple[str, ...]:
        """Return the names of the kernels for *part* and *formats*, in the order of preference."""
        return tuple(
            name
            for weights in formats
            for name, kernel in self.kernels.items()
            if part in kernel.parts
            and (kernel.weights, kernel.device) == (weights, self.kind)
            and kernel.problem(self.machine) is None
        )

    def steps(self, spec: LoadSpec, *, is_stored: bool) -> tuple[str, ...]:
        """Return the names of the kernels for decode steps; none if these cannot run *spec*."""
        problem = step_problem(spec, self.machine, is_stored=is_stored)
        return self.names("step", "any") if problem is None else ()
