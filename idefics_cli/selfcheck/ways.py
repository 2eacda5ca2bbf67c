"""The ways in which this machine can run a model: device, dtype, attention, weights, kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from idefics_cli.core.errors import PlanError
from idefics_cli.core.types import Attention, DtypeName, KernelChoice, LoadSpec, Quantization
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import ModelFacts
from idefics_cli.models.kernels.table import KERNELS
from idefics_cli.models.planning.attention import FLASH
from idefics_cli.models.planning.kernels import choose_kernels
from idefics_cli.models.planning.plan import PlanChoices, make_plan
from idefics_cli.models.planning.quantization import choose_4bit
from idefics_cli.models.planning.speeds import cpu_dtypes

_DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16", "float16")
_QUANTIZATIONS: tuple[Quantization, ...] = ("8bit", "4bit")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run the built-in model.

    Attributes:
        spec: All choices.
        is_planned: Whether a plan may choose it. If not, it runs only where another way fails.
        refusal: Why it cannot run here; None if it can.
        is_reference: Whether the others are compared with it.
    """

    spec: LoadSpec
    is_planned: bool = True
    refusal: str | None = None
    is_reference: bool = False

    @property
    def name(self) -> str:
        """The way in words."""
        spec = self.spec
        if self.refusal is not None and spec.device == "cuda":
            return "cuda"
        words = [spec.device, spec.dtype, spec.attention]
        if spec.quantization == "4bit":
            words.append(f"4bit {spec.format_4bit}")
        elif spec.quantization != "none":
            words.append(spec.quantization)
        if spec.kernels.text:
            words.append(spec.kernels.text[0])
        elif spec.device == "cpu" and spec.quantization != "none":
            words.append("bitsandbytes")
        if spec.device == "cpu" and not spec.kernels.names:
            words.append("without kernels")
        elif spec.device == "cpu" and not spec.kernels.text and spec.quantization == "none":
            words.append("with kernels")
        if spec.device.startswith("cuda") and not spec.uses_graphs:
            words.append("without graphs")
        return " ".join(words)

    def without_kernel(self, name: str) -> Way | None:
        """Return this way without the kernel *name*; None if its weights need this kernel."""
        former = self.spec.kernels
        kernels = replace(
            former,
            text=tuple(n for n in former.text if n != name),
            head=tuple(n for n in former.head if n != name),
            connector=tuple(n for n in former.connector if n != name),
            vision=tuple(n for n in former.vision if n != name),
            mlp=tuple(n for n in former.mlp if n != name),
            patches=tuple(n for n in former.patches if n != name),
            norm=tuple(n for n in former.norm if n != name),
            # A decode step has code for the first kernel of the text model only.
            step=tuple(n for n in former.step if name not in (n, *former.text)),
            attention=None if former.attention == name else former.attention,
        )
        is_quantized = self.spec.quantization != "none"
        for part in ("text", "head"):
            if is_quantized and getattr(former, part) and not getattr(kernels, part):
                return None
        return Way(replace(self.spec, kernels=kernels), is_planned=False)

    def without_graphs(self) -> Way:
        """Return this way without CUDA graphs."""
        return Way(replace(self.spec, uses_graphs=False), is_planned=False)


def reference_way(facts: ModelFacts, machine: Machine) -> Way:
    """Return the way that all others are compared with: float32 on the CPU, without kernels."""
    choices = PlanChoices(device="cpu", dtype="float32", quantization="none", attention="sdpa")
    spec = make_plan(facts, choices, machine).spec
    return Way(replace(spec, kernels=KernelChoice()), is_planned=False, is_reference=True)


def list_ways(facts: ModelFacts, machine: Machine, *, device: str | None = None) -> Iterator[Way]:
    """Yield the ways of *machine* except `reference_way`, including those that cannot run there.

    Args:
        facts: The built-in model.
        machine: This machine.
        device: The device as in `PlanChoices`; "auto" or None takes all devices.
    """
    for name in _devices(machine, device):
        for dtype, attention, quantization in _mixes(name, machine):
            choices = PlanChoices(
                device=name, dtype=dtype, attention=attention, quantization=quantization
            )
            try:
                spec = make_plan(facts, choices, machine).spec
            except PlanError as error:
                refused = LoadSpec(
                    facts.repo,
                    facts.family,
                    device=name,
                    dtype=dtype,
                    attention=attention,
                    quantization=quantization,
                )
                yield Way(refused, refusal=str(error))
                continue
            # A plan calls the first GPU "cuda", but a verdict must name its GPU by number.
            yield from _variants(replace(spec, device=name), facts, machine)


def _devices(machine: Machine, device: str | None) -> tuple[str, ...]:
    gpus = tuple(f"cuda:{gpu.index}" for gpu in machine.gpus)
    if device == "cuda":
        return gpus or ("cuda",)
    if device not in (None, "auto"):
        return (device,)
    # Without a GPU, the way "cuda" is refused, and its refusal says why.
    return ("cpu", *(gpus or ("cuda",)), *(("mps",) if machine.mps_bytes is not None else ()))


def _mixes(device: str, machine: Machine) -> Iterator[tuple[DtypeName, Attention, Quantization]]:
    if device == "cuda":
        yield "float32", "sdpa", "none"
        return
    for dtype in _DTYPES:
        yield dtype, "sdpa", "none"
        # On a CPU, `eager` in 16 bits is left out, because the other ways already use all its
        # kernels.
        if device != "cpu" or dtype == "float32":
            yield dtype, "eager", "none"
    native = _native_dtype(device, machine)
    for quantization in _QUANTIZATIONS:
        yield native, "sdpa", quantization
    if device.startswith("cuda"):
        for attention in FLASH:
            yield native, attention, "none"


def _native_dtype(device: str, machine: Machine) -> DtypeName:
    """Return the dtype that plans choose on *device* for models that are not small."""
    if device == "cpu":
        return cpu_dtypes(machine)[0]
    if device == "mps":
        return "bfloat16" if machine.mps_bf16 else "float16"
    gpu = next((gpu for gpu in machine.gpus if f"cuda:{gpu.index}" == device), None)
    return "bfloat16" if gpu is None or gpu.has_native_bf16 else "float16"


def _variants(spec: LoadSpec, facts: ModelFacts, machine: Machine) -> Iterator[Way]:
    """Yield the way that a plan takes, then those that take its place where it fails."""
    if spec.device.startswith("cuda"):
        planned = Way(spec)
        yield planned
        if spec.quantization != "8bit" and spec.attention not in FLASH:
            yield planned.without_graphs()
        return
    formats = choose_4bit(machine, facts.shape) if spec.quantization == "4bit" else (None,)
    for format_4bit in formats if spec.device == "cpu" else formats[:1]:
        if format_4bit is not None:
            spec = replace(spec, format_4bit=format_4bit)
            spec = replace(spec, kernels=choose_kernels(spec, machine))
        yield from _with_fewer_kernels(Way(spec))


def _with_fewer_kernels(way: Way) -> Iterator[Way]:
    """Yield *way*, then the ways in which its kernels are replaced one after the other."""
    yield way
    kernels = way.spec.kernels
    if way.spec.quantization == "none" and kernels.names and way.spec.dtype != "float32":
        yield Way(replace(way.spec, kernels=KernelChoice()), is_planned=False)
    if way.spec.quantization != "none":
        rest = way
        own = [n for n in kernels.text if KERNELS[n].weights == KERNELS[kernels.text[0]].weights]
        for name in own[:-1]:
            shorter = rest.without_kernel(name)
            if shorter is None:
                return
            rest = shorter
            yield rest
