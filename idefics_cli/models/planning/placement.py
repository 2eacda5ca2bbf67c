"""The ways to run a model on a machine, best first, and the memory that each takes.

If a model does not fit, the following ways give up something, the least important first. On GPUs:
use several instead of one, then quantize the weights, then do without tiles, then keep a part of
the weights in RAM. The CPU comes after all of these. It quantizes before it does without tiles, but
only if bitsandbytes has fast kernels for it; otherwise it first does without tiles, then quantizes
to 8 bits, and then to 4.
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

# Shares of the free memory that a plan may use, because free memory changes while a model loads:
# little on a GPU, more in RAM, which all programs use. The estimates have margins of their own.
GPU_SHARE = 0.97
RAM_SHARE = 0.90
# Models with fewer parameters are fast in any dtype, so they get the most exact one.
SMALL_PARAMETERS = 100_000_000
# For quantized models, transformers fills only nine tenths of `max_memory` (`adjust_max_memory`).
_QUANTIZER_SHARE = 0.9


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


@dataclass(frozen=True, slots=True)
class Need:
    """The memory that a model needs on one device, and what the device has, in bytes.

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
        """Sum of weights, KV cache and working memory."""
        return self.weights + self.kv_cache + self.working

    @property
    def missing(self) -> int:
        """The memory that is missing; 0 if the model fits."""
        return max(0, self.total - self.usable)


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
    """Return the number of CPU threads for *option*; None leaves the number to torch."""
    if option.device != "cpu":
        return None
    spared = machine.cores - 1 if machine.cores > 2 else machine.cores
    # Measured with the built-in model: the times for 1 to 3 threads differ by less than 20 %, but a
    # reply takes 25 times as long when another program keeps one of the cores busy.
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
        # Apple GPUs share the RAM of the machine.
        free = min(free, machine.mps_bytes or 0)
    working = load.working + CPU_RUNTIME_BYTES
    if option.device == "cpu" and option.quantization == "4bit" and option.format_4bit == "nf4":
        # To pack nf4 weights for the CPU, bitsandbytes unpacks those of one layer to 32-bit numbers
        # and an 8-bit copy.
        working += facts.shape.hidden * facts.shape.intermediate * 6
    need = Need(option.device, load.weights, load.kv_cache, working, free, int(free * RAM_SHARE))
    return (need,)


def max_memory(needs: tuple[Need, ...], option: Placement) -> Mapping[str, int] | None:
    """Return for accelerate how many bytes of weights each device may hold; None for one device.

    accelerate fills the devices in this order. So each device but the last is limited to its share
    of the weights and two layers more, and the later ones get their share too.
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
    """The combinations of quantization, splitting and dtype that agree with the user's choices."""

    facts: ModelFacts
    choices: PlanChoices

    def quantizations(self) -> tuple[Quantization, ...]:
        chosen = self.choices.quantization
        if self.facts.stored is not None:
            return (self.facts.stored,)
        if chosen in (None, "auto"):
            # Where 4bit has kernels, 8bit is slower than 4bit, so only a user chooses 8bit.
            return ("none", "4bit")
        return (chosen,)  # type: ignore[return-value] # `make_plan` checked it

    def splittings(self) -> tuple[bool, ...]:
        if self.choices.splitting is not None:
            return (self.choices.splitting and self.facts.splitting is not None,)
        return (True, False) if self.facts.splitting else (False,)

    def fast(self) -> Iterator[tuple[Quantization, bool]]:
        """Yield the combinations for a device that is fast with 4 bits."""
        for splitting in self.splittings():
            for quantization in self.quantizations():
                yield quantization, splitting

    def slow(self) -> Iterator[tuple[Quantization, bool]]:
        """Yield the combinations for a CPU on which 8 bits are nearly as fast as 4, and better."""
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
    # Without bfloat16 instructions, bfloat16 only saves memory. Measured with AVX512: float32 is 5
    # times as fast for a prompt, and equally fast for a reply.
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

    A layer cannot be divided, so one layer's bytes of each GPU may stay empty and do not count as
    usable. Each GPU also needs working memory.
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
