"""The ways to run a model on a machine, best first, and the memory that each takes.

Order: one GPU before several, whole weights before quantized ones, tiles before none, all of these
before a model that is partly in RAM, and a GPU before the CPU. On a processor without
bitsandbytes' kernels, giving up tiles comes before quantizing, and 8 bit before 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from idefics_cli.core.types import (
    Attention,
    Device,
    DtypeName,
    Format4bit,
    ImageLimits,
    Quantization,
)
from idefics_cli.hardware.machine import Gpu, Machine
from idefics_cli.models.hub.facts import ModelFacts
from idefics_cli.models.planning.memory import (
    CPU_RUNTIME_BYTES,
    GPU_RUNTIME_BYTES,
    MemoryNeed,
    estimate_memory,
)
from idefics_cli.models.planning.quantization import choose_4bit, has_packed_nf4

# Shares of the free memory that a plan may use. The free memory changes while a model loads: on a
# GPU little, in RAM with every other program. The estimates have margins of their own.
GPU_SHARE = 0.97
RAM_SHARE = 0.90
# Models with fewer parameters are fast in any dtype, so they get the most exact one.
SMALL_PARAMETERS = 100_000_000
# transformers plans quantized models with nine tenths of `max_memory` (`adjust_max_memory`).
_QUANTIZER_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class PlanChoices:
    """The user's choices; "auto" or None leaves a choice to the plan.

    Attributes:
        device: "auto", "cpu", "mps", "cuda" (all GPUs, and RAM for the rest) or "cuda:N" (that GPU
            alone).
        dtype: "auto" or a `DtypeName`.
        quantization: "auto" or a `Quantization`.
        attention: "auto" or an `Attention`.
        splitting: Whether large pictures are cut into tiles.
        offline: Do not use the network.
        threads: Number of CPU threads.
        revision: Branch, tag or commit of a Hub repository.
        limits: Limits of the image loader.
    """

    device: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    attention: str | None = None
    splitting: bool | None = None
    offline: bool = False
    threads: int | None = None
    revision: str | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)


@dataclass(frozen=True, slots=True)
class Placement:
    """One way to run a model.

    Attributes:
        device: Device of the model; the first of several.
        gpus: The GPUs that hold the model; empty on mps and cpu.
        dtype: Dtype of the weights that are not quantized.
        quantization: Quantization of the text model.
        splitting: Whether large pictures are cut into tiles.
        offload: Whether RAM holds the layers that do not fit on the GPUs.
        format_4bit: Format of `4bit`.
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
        """Whether more than one memory holds the model."""
        return self.offload or len(self.gpus) > 1


@dataclass(frozen=True, slots=True)
class Need:
    """The memory that a model needs on one device, and the memory there is; bytes.

    Attributes:
        device: "cuda:N", "mps" or "cpu".
        weights: Weights on this device.
        kv_cache: KV cache on this device.
        working: Intermediate results, and memory of the runtime.
        free: Free memory at present.
        usable: The part of the free memory that a plan may use.
    """

    device: str
    weights: int
    kv_cache: int
    working: int
    free: int
    usable: int

    @property
    def total(self) -> int:
        """The memory that is needed."""
        return self.weights + self.kv_cache + self.working

    @property
    def missing(self) -> int:
        """The memory that is missing; 0 if the model fits."""
        return max(0, self.total - self.usable)


def list_placements(
    facts: ModelFacts, choices: PlanChoices, machine: Machine
) -> Iterator[Placement]:
    """Yield the ways to run a model that *choices* leave open, best first."""
    device = choices.device or "auto"
    gpus = machine.gpus if device in ("auto", "cuda") else ()
    if device.startswith("cuda:"):
        gpus = tuple(gpu for gpu in machine.gpus if f"cuda:{gpu.index}" == device)
    mixes = _Mixes(facts, choices)
    if gpus:
        yield from _on_gpus(gpus, mixes, offload=not device.startswith("cuda:"))
    if device == "mps" or (device == "auto" and machine.mps_bytes is not None and not gpus):
        dtypes: tuple[DtypeName, ...] = ("bfloat16",) if machine.mps_bf16 else ("float16",)
        for quantization, splitting in mixes.fast():
            for dtype in mixes.dtypes(dtypes):
                yield Placement("mps", (), dtype, quantization, splitting)
    if device in ("auto", "cpu"):
        yield from _on_cpu(machine, mixes)


def is_small(facts: ModelFacts) -> bool:
    """Whether a model is fast in any dtype and with few threads."""
    return facts.parameters < SMALL_PARAMETERS


def default_threads(option: Placement, facts: ModelFacts, machine: Machine) -> int | None:
    """Return the CPU threads for *option*; None leaves them to torch."""
    if option.device != "cpu":
        return None
    spared = machine.cores - 1 if machine.cores > 2 else machine.cores
    # Measured on the built-in model: 1 to 3 threads within 20 %, but 25 times as long when
    # another program keeps one of the cores busy.
    return min(spared, 2, max(1, machine.cores - 1)) if is_small(facts) else spared


def needs_of(
    option: Placement, facts: ModelFacts, attention: Attention, machine: Machine
) -> tuple[Need, ...]:
    """Return the memory that *option* needs on every device."""
    load = _load(option, facts, attention)
    if option.is_spread:
        return _spread(option, facts, load, machine)
    if option.gpus:
        gpu = option.gpus[0]
        usable = int(gpu.free_bytes * GPU_SHARE)
        working = load.working + GPU_RUNTIME_BYTES
        return (
            Need(f"cuda:{gpu.index}", load.weights, load.kv_cache, working, gpu.free_bytes, usable),
        )
    free = machine.free_ram_bytes
    if option.device == "mps":
        # Apple GPUs use the machine's memory.
        free = min(free, machine.mps_bytes or 0)
    working = load.working + CPU_RUNTIME_BYTES
    if option.device == "cpu" and option.quantization == "4bit" and option.format_4bit == "nf4":
        # Packing unpacks the weights of one layer to 32-bit numbers and an 8-bit copy.
        working += facts.shape.hidden * facts.shape.intermediate * 6
    need = Need(option.device, load.weights, load.kv_cache, working, free, int(free * RAM_SHARE))
    return (need,)


def max_memory(needs: tuple[Need, ...], option: Placement) -> Mapping[str, int] | None:
    """Return the bytes of weights that each device may hold, for accelerate; None for one device.

    Devices are filled in this order, so all but the last get little more than their share.
    """
    if not option.is_spread:
        return None
    share = 1.0 if option.quantization == "none" else _QUANTIZER_SHARE
    limits = {}
    for need in needs:
        most = int(need.free * (RAM_SHARE if need.device == "cpu" else GPU_SHARE))
        layer = most - need.usable
        room = max(0, most - need.kv_cache - need.working)
        if need is not needs[-1]:
            room = min(room, need.weights + 2 * layer)
        limits[need.device.removeprefix("cuda:")] = int(room / share)
    return limits


@dataclass(frozen=True, slots=True)
class _Mixes:
    """The combinations of all choices but the device."""

    facts: ModelFacts
    choices: PlanChoices

    def quantizations(self) -> tuple[Quantization, ...]:
        chosen = self.choices.quantization
        if self.facts.stored is not None:
            return (self.facts.stored,)
        if chosen in (None, "auto"):
            # 8bit is slower than 4bit wherever 4bit has kernels, so it has to be asked for.
            return ("none", "4bit")
        return (chosen,)  # type: ignore[return-value] # `make_plan` checked it

    def splittings(self) -> tuple[bool, ...]:
        if self.choices.splitting is not None:
            return (self.choices.splitting and self.facts.splitting is not None,)
        return (True, False) if self.facts.splitting else (False,)

    def fast(self) -> Iterator[tuple[Quantization, bool]]:
        """Yield the mixes for a device that is fast with 4 bit."""
        for splitting in self.splittings():
            for quantization in self.quantizations():
                yield quantization, splitting

    def slow(self) -> Iterator[tuple[Quantization, bool]]:
        """Yield the mixes for a CPU on which 8 bit is nearly as fast as 4, and better."""
        is_open = self.quantizations() == ("none", "4bit")
        for quantization in ("none", "8bit", "4bit") if is_open else self.quantizations():
            for splitting in self.splittings():
                yield quantization, splitting

    def dtypes(self, native: tuple[DtypeName, ...]) -> tuple[DtypeName, ...]:
        chosen = self.choices.dtype
        if self.facts.stored_dtype is not None:
            return (self.facts.stored_dtype,)
        if chosen not in (None, "auto"):
            return (chosen,)  # type: ignore[return-value] # `make_plan` checked it
        return ("float32",) if is_small(self.facts) else native


def _on_gpus(gpus: tuple[Gpu, ...], mixes: _Mixes, *, offload: bool) -> Iterator[Placement]:
    best = max(gpus, key=lambda gpu: gpu.free_bytes)
    groups = [(best,)] if len(gpus) == 1 else [(best,), gpus]
    for quantization, splitting in mixes.fast():
        for group in groups:
            for dtype in mixes.dtypes(_gpu_dtypes(group)):
                yield Placement(group[0].device, group, dtype, quantization, splitting)
    if not offload or "none" not in mixes.quantizations():
        return  # bitsandbytes cannot keep weights in RAM
    for splitting in mixes.splittings():
        for dtype in mixes.dtypes(_gpu_dtypes(gpus)):
            yield Placement(gpus[0].device, gpus, dtype, "none", splitting, offload=True)


def _on_cpu(machine: Machine, mixes: _Mixes) -> Iterator[Placement]:
    # Without native bfloat16, float32 is faster (measured on AVX512: 5 times for a prompt, equal
    # for a reply), and bfloat16 only saves memory.
    native: tuple[DtypeName, ...] = ("bfloat16",) if machine.cpu_bf16 else ("float32", "bfloat16")
    is_stored = mixes.facts.stored is not None
    formats = ("nf4",) if is_stored else choose_4bit(machine, mixes.facts.shape)
    for quantization, splitting in mixes.fast() if has_packed_nf4(machine) else mixes.slow():
        for format_4bit in formats if quantization == "4bit" else formats[:1]:
            for dtype in mixes.dtypes(native):
                yield Placement("cpu", (), dtype, quantization, splitting, format_4bit=format_4bit)


def _gpu_dtypes(gpus: tuple[Gpu, ...]) -> tuple[DtypeName, ...]:
    native = all(gpu.has_native_bf16 for gpu in gpus)
    return ("bfloat16",) if native else ("float16",)


def _load(option: Placement, facts: ModelFacts, attention: Attention) -> MemoryNeed:
    load = estimate_memory(
        facts.parameters,
        facts.shape,
        dtype=option.dtype,
        quantization=option.quantization,
        attention=attention,
        splitting=option.splitting,
        context=facts.context_tokens,
        format_4bit=option.format_4bit,
    )
    if facts.stored is None:
        return load
    return MemoryNeed(facts.stored_bytes, load.kv_cache, load.working)


def _spread(
    option: Placement, facts: ModelFacts, load: MemoryNeed, machine: Machine
) -> tuple[Need, ...]:
    """Return the memory on each GPU, and in RAM, for a model that one GPU cannot hold.

    Layers are not divided, so the usable memory of each GPU leaves room for one more layer; and
    each GPU holds intermediate results.
    """
    shape = facts.shape
    layer = load.weights // max(1, shape.layers + shape.cross_layers)
    count = len(option.gpus)
    working = load.working + GPU_RUNTIME_BYTES
    kv_cache = load.kv_cache // count
    usable = [max(0, int(gpu.free_bytes * GPU_SHARE) - layer) for gpu in option.gpus]
    rooms = [max(0, size - working - kv_cache) for size in usable]
    room = sum(rooms)
    on_gpus = min(load.weights, room) if option.offload else load.weights
    parts = [on_gpus * part // room if room else on_gpus // count for part in rooms]
    needs = [
        Need(f"cuda:{gpu.index}", part, kv_cache, working, gpu.free_bytes, size)
        for gpu, part, size in zip(option.gpus, parts, usable, strict=True)
    ]
    if option.offload:
        free = machine.free_ram_bytes
        rest = load.weights - on_gpus
        needs.append(Need("cpu", rest, 0, CPU_RUNTIME_BYTES, free, int(free * RAM_SHARE)))
    return tuple(needs)
