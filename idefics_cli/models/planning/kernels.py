"""Which kernels compute a model on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from idefics_cli.core.types import KernelChoice, LoadSpec
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.kernels.table import KERNELS, Kernel, Part, Weights, native_bf16_problem
from idefics_cli.models.planning.quantization import is_own


def choose_kernels(
    spec: LoadSpec,
    machine: Machine,
    *,
    is_stored: bool = False,
    kernels: Mapping[str, Kernel] = KERNELS,
) -> KernelChoice:
    """Return the kernels for the model of *spec* on *machine*; none unless the CPU holds it all.

    Args:
        spec: All other choices.
        machine: Where the model runs.
        is_stored: Whether the files of the model hold weights that bitsandbytes made.
        kernels: The kernels there are, in the order of preference.
    """
    if spec.device != "cpu" or spec.device_map is not None:
        return KernelChoice()
    table = _Usable(kernels, machine)
    plain: tuple[Weights, ...] = ("bfloat16",) if spec.dtype == "bfloat16" else ()
    text, head = _text_and_head(spec, table, plain, is_stored=is_stored)
    attentions = table.names("attention", *plain, "any") if spec.attention == "sdpa" else ()
    is_native = spec.dtype == "bfloat16" and native_bf16_problem(machine) is None
    return KernelChoice(
        text=text,
        head=head,
        connector=table.names("connector", *plain),
        vision=table.names("vision", *plain),
        patches=table.names("patches", *plain),
        norm=table.names("norm", "any"),
        attention=attentions[0] if attentions else None,
        # Other processors imitate 16 bit, which takes up to 4 times as long.
        product_dtype="bfloat16" if is_native else "float32",
    )


def _text_and_head(
    spec: LoadSpec, table: _Usable, plain: tuple[Weights, ...], *, is_stored: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the kernels of the text model and of the head.

    Args:
        spec: All other choices.
        table: The kernels there are.
        plain: Formats of weights that are not quantized and have kernels.
        is_stored: Whether the files of the model hold weights that bitsandbytes made.
    """
    if spec.quantization == "none":
        return table.names("text", *plain), table.names("head", *plain)
    if is_stored or not is_own(spec.quantization, spec.device, format_4bit=spec.format_4bit):
        # bitsandbytes has layers of its own, and leaves the head as it is.
        return (), table.names("connector", *plain)
    # Layers whose shape 4 bit does not suit get 8. So does the head, the scores of all tokens of
    # the vocabulary: it is read for each word, so 8 bit save a tenth of the time in the largest
    # models, and rounding it costs next to nothing.
    formats: tuple[Weights, ...] = ("int4", "int8") if spec.quantization == "4bit" else ("int8",)
    return table.names("text", *formats), table.names("head", "int8")


@dataclass(frozen=True, slots=True)
class _Usable:
    """The kernels that a machine can run."""

    kernels: Mapping[str, Kernel]
    machine: Machine

    def names(self, part: Part, *formats: Weights) -> tuple[str, ...]:
        """Return the kernels for *part* and each of *formats*, the preferred first."""
        return tuple(
            name
            for weights in formats
            for name, kernel in self.kernels.items()
            if part in kernel.parts
            and kernel.weights == weights
            and kernel.problem(self.machine) is None
        )
