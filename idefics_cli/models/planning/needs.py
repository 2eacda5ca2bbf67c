"""The memory that a placement of a model needs on every device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from idefics_cli.core.types import Attention
from idefics_cli.core.units import format_size
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.families.spec import find_family
from idefics_cli.models.hub.facts import ModelFacts
from idefics_cli.models.planning.attention import FLASH
from idefics_cli.models.planning.kernels import packs_weights
from idefics_cli.models.planning.memory import (
    CPU_RUNTIME_BYTES,
    GPU_RUNTIME_BYTES,
    ON_CPU,
    ON_CUDA,
    ON_METAL,
    ON_OLD_CUDA,
    ForwardMemory,
    MemoryNeed,
    estimate_memory,
    prompt_tokens,
    text_bytes,
    tile_bytes,
    tiles_at_a_time,
)
from idefics_cli.models.planning.placement import Placement

# A plan uses only this share of the free memory, because free memory changes while a model loads:
# little on a GPU, more in RAM, which all programs use. The estimates already have margins for their
# own errors.
GPU_SHARE = 0.97
RAM_SHARE = 0.90
# For quantized models, transformers fills only nine tenths of `max_memory` (`adjust_max_memory`).
_QUANTIZER_SHARE = 0.9


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
        picture: Memory for one more picture that is answered in the same batch; None if it needs
            as much as the first one.
    """

    device: str
    weights: int
    kv_cache: int
    working: int
    free: int
    usable: int
    picture: int | None = None

    @property
    def total(self) -> int:
        """Sum of weights, KV cache and working memory."""
        return self.weights + self.kv_cache + self.working

    @property
    def is_in_ram(self) -> bool:
        """Whether the device uses the RAM of the machine."""
        return self.device in ("cpu", "mps")

    @property
    def missing(self) -> int:
        """The memory that is missing; 0 if the model fits."""
        return max(0, self.total - self.usable)


def needs_of(
    option: Placement,
    facts: ModelFacts,
    attention: Attention,
    machine: Machine,
    *,
    left_out: Collection[str] = (),
) -> tuple[Need, ...]:
    """Return the memory that *option* needs on every device, without the kernels *left_out*."""
    is_packed = packs_weights(option, facts, machine, left_out=left_out)
    load = _load(option, facts, attention, is_packed=is_packed)
    wider = _float32_bytes(option, facts, attention, load)
    if option.is_spread:
        needs = _spread(option, facts, load, machine, on_first=sum(wider))
    elif option.gpus:
        gpu = option.gpus[0]
        usable = int(gpu.free_bytes * GPU_SHARE)
        weights, working = load.weights + wider[0], load.working + wider[1] + GPU_RUNTIME_BYTES
        name = f"cuda:{gpu.index}"
        needs = (Need(name, weights, load.kv_cache, working, gpu.free_bytes, usable),)
    else:
        need = _one_memory(option, facts, load, machine)
        needs = (replace(need, weights=need.weights + wider[0], working=need.working + wider[1]),)
    if option.device == "cpu":
        return needs
    text = text_bytes(
        facts.shape,
        dtype=option.dtype,
        attention=attention,
        tokens=prompt_tokens(facts.shape, splitting=option.splitting, context=facts.context_tokens),
        forward=forward_memory(option),
    )
    # The KV cache of a prompt is copied into a slot, so both exist for a moment. Pictures are
    # encoded one after the other.
    return tuple(replace(need, picture=2 * need.kv_cache + text) for need in needs)


def with_larger_forwards(
    needs: tuple[Need, ...], option: Placement, facts: ModelFacts, attention: Attention
) -> tuple[tuple[Need, ...], int | None]:
    """Let one forward of the vision tower take several tiles, if the memory of the GPU allows it.

    Returns:
        The needs with these tiles, and their number; None for the number without a GPU.
    """
    if not option.gpus:
        return needs, None
    shape, first = facts.shape, needs[0]
    each = tile_bytes(
        shape, dtype=option.dtype, attention=attention, forward=forward_memory(option)
    )
    if float32_modules(option, facts, attention):
        each *= 2
    tiles = tiles_at_a_time(shape, spare_bytes=first.usable - first.total, each_bytes=each)
    # The vision tower is on the first GPU, so only this GPU needs memory for more tiles.
    wider = replace(first, working=max(first.working, tiles * each + GPU_RUNTIME_BYTES))
    return (wider, *needs[1:]), tiles


def forward_memory(option: Placement) -> ForwardMemory:
    """Return what the device of *option* keeps in memory during a forward."""
    if option.device == "mps":
        return ON_METAL
    if not option.gpus:
        return ON_CPU
    is_native = all(gpu.has_native_bf16 for gpu in option.gpus)
    return ON_CUDA if is_native or option.dtype != "bfloat16" else ON_OLD_CUDA


def float32_modules(option: Placement, facts: ModelFacts, attention: Attention) -> tuple[str, ...]:
    """Return the modules that leave the range of float16, and that *option* runs in float32."""
    if option.dtype != "float16" or option.device == "cpu":
        return ()
    # No module gets float32: FlashAttention takes 16 bit only, and accelerate keeps the dtype of
    # weights that stay in RAM.
    if attention in FLASH or option.offload:
        return ()
    return find_family(facts.family).float32_modules


def _float32_bytes(
    option: Placement, facts: ModelFacts, attention: Attention, load: MemoryNeed
) -> tuple[int, int]:
    """Return the weights, and the results, that modules in float32 need besides *load*.

    They are those of the connector, which has the widest results of a picture.
    """
    if not float32_modules(option, facts, attention):
        return 0, 0
    parameters = find_family(facts.family).float32_parameters * facts.shape.hidden**2
    return int(2 * parameters), load.working


def _one_memory(option: Placement, facts: ModelFacts, load: MemoryNeed, machine: Machine) -> Need:
    """Return the memory for a model on the CPU, or on an Apple GPU."""
    free = machine.free_ram_bytes
    if option.device == "mps":
        # An Apple GPU uses the RAM of the machine, so both limits apply.
        free = min(free, machine.mps_bytes or 0)
    working = load.working + CPU_RUNTIME_BYTES
    if option.device == "cpu" and option.quantization == "4bit" and option.format_4bit == "nf4":
        # To pack nf4 weights for the CPU, bitsandbytes unpacks those of one layer to 32-bit numbers
        # and an 8-bit copy.
        working += facts.shape.hidden * facts.shape.intermediate * 6
    return Need(option.device, load.weights, load.kv_cache, working, free, int(free * RAM_SHARE))


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


def _load(
    option: Placement, facts: ModelFacts, attention: Attention, *, is_packed: bool
) -> MemoryNeed:
    load = estimate_memory(
        facts.parameters,
        facts.shape,
        dtype=option.dtype,
        quantization=option.quantization,
        attention=attention,
        splitting=option.splitting,
        context=facts.context_tokens,
        format_4bit=option.format_4bit,
        is_packed=is_packed,
        forward=forward_memory(option),
    )
    if facts.stored is None:
        return load
    return MemoryNeed(facts.stored_bytes, load.kv_cache, load.working)


def _spread(
    option: Placement, facts: ModelFacts, load: MemoryNeed, machine: Machine, *, on_first: int
) -> tuple[Need, ...]:
    """Return the memory on each GPU, and in RAM, for a model that one GPU cannot hold.

    A layer cannot be divided, so one layer's bytes of each GPU may stay empty and do not count as
    usable. Each GPU also needs working memory. The first GPU needs *on_first* bytes more, because
    it has the vision tower and the connector.
    """
    shape = facts.shape
    layer = load.weights // max(1, shape.layers + shape.cross_layers)
    count = len(option.gpus)
    working = [load.working + GPU_RUNTIME_BYTES] * count
    working[0] += on_first
    kv_cache = load.kv_cache // count
    usable = [max(0, int(gpu.free_bytes * GPU_SHARE) - layer) for gpu in option.gpus]
    rooms = [max(0, size - needed - kv_cache) for size, needed in zip(usable, working, strict=True)]
    room = sum(rooms)
    on_gpus = min(load.weights, room) if option.offload else load.weights
    parts = [on_gpus * part // room if room else on_gpus // count for part in rooms]
    needs = [
        Need(f"cuda:{gpu.index}", part, kv_cache, needed, gpu.free_bytes, size)
        for gpu, part, needed, size in zip(option.gpus, parts, working, usable, strict=True)
    ]
    if option.offload:
        free = machine.free_ram_bytes
        rest = load.weights - on_gpus
        needs.append(Need("cpu", rest, 0, CPU_RUNTIME_BYTES, free, int(free * RAM_SHARE)))
    return tuple(needs)


def describe_fit(needs: tuple[Need, ...]) -> str:
    """Return how much of the memory *needs* take."""
    total, usable = sum(n.total for n in needs), sum(n.usable for n in needs)
    return f"{format_size(total)} of {format_size(usable)} usable"


def describe_shortage(needs: tuple[Need, ...]) -> str:
    """Return by how much *needs* exceed the memory, as the end of a sentence."""
    total, usable = sum(n.total for n in needs), sum(n.usable for n in needs)
    where = " and ".join(need.device for need in needs)
    return f"needs {format_size(total)}, and {format_size(usable)} are usable on {where}"
