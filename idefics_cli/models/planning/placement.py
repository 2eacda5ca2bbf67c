"""The ways to run a model on a machine, best first.

If a model does not fit, the following ways give up something, the least important first. On GPUs:
use several instead of one, then quantize the weights, then do without tiles. The CPU with 4 bits
comes next, then a GPU with a part of the weights in RAM: they cross the bus for every token, which
takes longer than the CPU takes for 4 bits. The other ways of the CPU come last. It quantizes to 8
bits, then to 4, before it does without tiles. `speeds.py` has the rules for formats of weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from idefics_cli.core.types import (
    Device,
    DtypeName,
    Format4bit,
    ImageLimits,
    Quantization,
)
from idefics_cli.hardware.machine import Gpu, Machine
from idefics_cli.models.hub.facts import ModelFacts
from idefics_cli.models.planning.quantization import choose_4bit
from idefics_cli.models.planning.speeds import cpu_dtypes

# Models with fewer parameters are fast in any dtype, so they get the most exact one.
SMALL_PARAMETERS = 100_000_000
_ON_CPU: tuple[Quantization, ...] = ("none", "8bit", "4bit")
# LLM.int8() is slower than nf4 on a GPU, so 8bit is missing.
_ON_GPU: tuple[Quantization, ...] = ("none", "4bit")


@dataclass(frozen=True, slots=True)
class PlanChoices:
    """The user's choices; "auto" or None leaves a choice to the plan.

    Attributes:
        device: "auto", "cpu", "mps", "cuda" (all GPUs, and RAM for what does not fit) or "cuda:N"
            (only that GPU).
        dtype: "auto" or a `DtypeName`.
        quantization: "auto" or a `Quantization`.
        attention: "auto" or an `Attention`.
        splitting: Whether large pictures are cut into tiles.
        longest_edge: Length in pixels to which the longer side of a picture is scaled.
        offline: Whether the network must not be used.
        threads: Number of CPU threads.
        revision: Branch, tag or commit of a Hub repository.
        limits: Limits of the image loader.
    """

    device: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    attention: str | None = None
    splitting: bool | None = None
    longest_edge: int | None = None
    offline: bool = False
    threads: int | None = None
    revision: str | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)


@dataclass(frozen=True, slots=True)
class Placement:
    """One way to run a model.

    Attributes:
        device: Device of the model; if there are several, the first.
        gpus: The GPUs that hold the model; empty on mps and cpu.
        dtype: Dtype of the weights that are not quantized.
        quantization: Quantization of the text model.
        splitting: Whether large pictures are cut into tiles.
        offload: Whether RAM holds the layers that do not fit on the GPUs.
        format_4bit: Format of the weights if *quantization* is "4bit".
    """

    device: Device
    gpus: tuple[Gpu, ...]
    dtype: DtypeName
    quantization: Quantization
    splitting: bool
    offload: bool = False
    format_4bit: Format4bit = "nf4"

    @property
    def is_spread(self) -> bool:
        """Whether the model is divided between several GPUs, or between GPUs and RAM."""
        return self.offload or len(self.gpus) > 1


def list_placements(
    facts: ModelFacts, choices: PlanChoices, machine: Machine
) -> Iterator[Placement]:
    """Yield the ways to run a model that agree with *choices*, best first."""
    device = choices.device or "auto"
    gpus = machine.gpus if device in ("auto", "cuda") else ()
    if device.startswith("cuda:"):
        gpus = tuple(gpu for gpu in machine.gpus if f"cuda:{gpu.index}" == device)
    mixes = _Mixes(facts, choices)
    if gpus:
        yield from _on_gpus(gpus, mixes)
        if device == "auto":
            yield from (o for o in _on_cpu(machine, mixes) if o.quantization == "4bit")
        if not device.startswith("cuda:"):
            yield from _with_offload(gpus, mixes)
    if device == "mps" or (device == "auto" and machine.mps_bytes is not None and not gpus):
        dtypes: tuple[DtypeName, ...] = ("bfloat16",) if machine.mps_bf16 else ("float16",)
        for quantization, splitting in mixes.kinds(*_ON_GPU):
            for dtype in mixes.dtypes(dtypes):
                yield Placement("mps", (), dtype, quantization, splitting)
    if device in ("auto", "cpu"):
        yield from _on_cpu(machine, mixes)


def is_small(facts: ModelFacts) -> bool:
    """Whether a model is fast in any dtype and with few threads."""
    return facts.parameters < SMALL_PARAMETERS


def default_threads(option: Placement, facts: ModelFacts, machine: Machine) -> int | None:
    """Return the number of CPU threads for *option*; None leaves the number to torch."""
    if option.device != "cpu":
        return None
    spared = machine.cores - 1 if machine.cores > 2 else machine.cores
    # Measured with the built-in model: the times for 1 to 3 threads differ by less than 20 %, but a
    # reply takes 25 times as long when another program keeps one of the cores busy.
    return min(spared, 2, max(1, machine.cores - 1)) if is_small(facts) else spared


@dataclass(frozen=True, slots=True)
class _Mixes:
    """The combinations of quantization, splitting and dtype that agree with the user's choices."""

    facts: ModelFacts
    choices: PlanChoices

    def quantizations(self, *automatic: Quantization) -> tuple[Quantization, ...]:
        """Return the quantizations to try; *automatic* if the user left the choice to the plan."""
        chosen = self.choices.quantization
        if self.facts.stored is not None:
            return (self.facts.stored,)
        if chosen in (None, "auto"):
            return automatic
        return (chosen,)  # type: ignore[return-value] # `make_plan` checked it

    def splittings(self) -> tuple[bool, ...]:
        if self.choices.splitting is not None:
            return (self.choices.splitting and self.facts.splitting is not None,)
        return (True, False) if self.facts.splitting else (False,)

    def kinds(self, *automatic: Quantization) -> Iterator[tuple[Quantization, bool]]:
        """Yield combinations of quantization and splitting; see `quantizations`."""
        for splitting in self.splittings():
            for quantization in self.quantizations(*automatic):
                yield quantization, splitting

    def dtypes(self, native: tuple[DtypeName, ...]) -> tuple[DtypeName, ...]:
        chosen = self.choices.dtype
        if self.facts.stored_dtype is not None:
            return (self.facts.stored_dtype,)
        if chosen not in (None, "auto"):
            return (chosen,)  # type: ignore[return-value] # `make_plan` checked it
        return ("float32",) if is_small(self.facts) else native


def _on_gpus(gpus: tuple[Gpu, ...], mixes: _Mixes) -> Iterator[Placement]:
    best = max(gpus, key=lambda gpu: gpu.free_bytes)
    groups = [(best,)] if len(gpus) == 1 else [(best,), gpus]
    for quantization, splitting in mixes.kinds(*_ON_GPU):
        for group in groups:
            for dtype in mixes.dtypes(_gpu_dtypes(group)):
                yield Placement(group[0].device, group, dtype, quantization, splitting)


def _with_offload(gpus: tuple[Gpu, ...], mixes: _Mixes) -> Iterator[Placement]:
    if "none" not in mixes.quantizations("none"):
        return  # bitsandbytes cannot keep weights in RAM
    for splitting in mixes.splittings():
        for dtype in mixes.dtypes(_gpu_dtypes(gpus)):
            yield Placement(gpus[0].device, gpus, dtype, "none", splitting, offload=True)


def _on_cpu(machine: Machine, mixes: _Mixes) -> Iterator[Placement]:
    native = cpu_dtypes(machine)
    is_stored = mixes.facts.stored is not None
    formats = ("nf4",) if is_stored else choose_4bit(machine, mixes.facts.shape)
    for quantization, splitting in mixes.kinds(*_ON_CPU):
        for format_4bit in formats if quantization == "4bit" else formats[:1]:
            for dtype in mixes.dtypes(native):
                yield Placement("cpu", (), dtype, quantization, splitting, format_4bit=format_4bit)


def _gpu_dtypes(gpus: tuple[Gpu, ...]) -> tuple[DtypeName, ...]:
    native = all(gpu.has_native_bf16 for gpu in gpus)
    return ("bfloat16",) if native else ("float16",)
