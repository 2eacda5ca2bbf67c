"""Quantization by bitsandbytes or by our kernels: the bytes per weight, and where each works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from idefics_cli.core.types import Format4bit, Quantization
from idefics_cli.core.units import format_duration
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.families.spec import Shape
from idefics_cli.models.planning.speeds import MARGIN, order_by_speed, speeds_of

# bitsandbytes' packed CPU kernel reads blocks of this many rows of the weight matrix (bitsandbytes
# 0.50, functional.py `_convert_weight_packed_for_cpu`).
_PACK_ROWS = 32
# This many nf4 weights share a scale.
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Method:
    """One way to store the weights of linear layers.

    Attributes:
        bytes_per_weight: Bytes of a weight with its share of the scales; None means that weights
            keep the dtype of the model.
        summary: A description for users.
    """

    bytes_per_weight: float | None
    summary: str


METHODS: Mapping[Quantization, Method] = MappingProxyType(
    {
        "none": Method(None, "the weights as they are"),
        # The float32 scale of each output is negligible.
        "8bit": Method(
            1.0, "half the memory of 16 bit: LLM.int8() on a GPU, 8-bit weights on a CPU"
        ),
        # A weight takes half a byte. 64 weights share an 8-bit scale, and 256 such scales share a
        # 32-bit scale.
        "4bit": Method(
            0.5 + 1 / 64 + 4 / (64 * 256),
            "nf4 with double quantization on a GPU, groups of int4 on most CPUs",
        ),
    }
)

# Seconds to quantize 1e9 weights: to int4 with 1 or 2 threads of AMD Zen 5, where 8 bits take less,
# and to nf4 on 4 cores.
_SECONDS, _NF4_SECONDS = 2, 13
# An int4 weight takes half a byte. A group of 32 weights also has two numbers, of 16 bits in the
# layout of torch's kernel and of 8 bits in that of ours. The plan counts the larger; see
# `kernels/int4`.
_INT4_BYTES = 0.5 + 4 / 32


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something cannot be done here, and what would help."""

    message: str
    hint: str


def find_problem(
    quantization: Quantization,
    *,
    device: str,
    machine: Machine,
    shape: Shape,
    format_4bit: Format4bit = "nf4",
    is_stored: bool = False,
) -> Problem | None:
    """Return why *quantization* cannot run on *device*, or None.

    Args:
        quantization: The quantization.
        device: Device of the model.
        machine: The machine with this device.
        shape: Shape of the model.
        format_4bit: Format of `4bit`.
        is_stored: Whether the files of the model hold weights that bitsandbytes quantized.
    """
    own = is_own(quantization, device, format_4bit=format_4bit)
    if quantization == "none" or (own and not is_stored):
        return None
    if device.startswith("mps"):
        return Problem(
            f"`{quantization}` needs a CUDA GPU or a CPU; bitsandbytes does not run on Apple GPUs",
            "`--quantization none`, a smaller model, or `--device cpu`",
        )
    problem = _package_problem(quantization, machine)
    if problem is None and quantization == "4bit" and device == "cpu":
        return _packing_problem(machine, shape)
    return problem


def _package_problem(quantization: Quantization, machine: Machine) -> Problem | None:
    for package in ("bitsandbytes", "accelerate"):
        if package in machine.broken:
            return Problem(
                f"`{quantization}` needs {package}, which cannot be imported: "
                f"{machine.broken[package]}",
                f"pip install --force-reinstall {package}",
            )
        if not machine.has(package):
            return Problem(
                f"`{quantization}` needs the package {package}", f"pip install {package}"
            )
    return None


def _packing_problem(machine: Machine, shape: Shape) -> Problem | None:
    if not has_packed_nf4(machine) or _packs(shape):
        return None
    return Problem(
        "`4bit` cannot run on this processor: bitsandbytes packs only layers whose height is a "
        f"multiple of {_PACK_ROWS} and whose width is a multiple of {_BLOCK}, and this model has "
        "other layers",
        "`--quantization none` or `--quantization 8bit`",
    )


def has_packed_nf4(machine: Machine) -> bool:
    """Whether bitsandbytes has fast kernels for nf4 on the processor of *machine*.

    They need AVX512_BF16 (bitsandbytes 0.50, `functional.has_avx512bf16`).
    """
    return "avx512_bf16" in machine.cpu_flags


def choose_4bit(machine: Machine, shape: Shape) -> tuple[Format4bit, ...]:
    """Return the formats for `4bit` on the CPU of *machine*, the best first.

    This is for checkpoints that are not quantized yet. The table of speeds decides. The slower one
    comes second: nf4 takes 0.11 bytes per weight less than int4 and may fit where int4 does not.
    Where bitsandbytes has no fast kernels for nf4, nf4 is no choice.
    """
    installed = all(machine.has(package) for package in ("bitsandbytes", "accelerate"))
    if not (has_packed_nf4(machine) and installed and _packs(shape)):
        return ("int4",)
    formats: tuple[Format4bit, ...] = ("int4", "nf4")
    return order_by_speed(formats, machine)


def bytes_per_weight(quantization: Quantization, format_4bit: Format4bit) -> float | None:
    """Return the bytes of a quantized weight with its scales; None if weights keep their dtype."""
    if quantization == "4bit" and format_4bit == "int4":
        return _INT4_BYTES
    return METHODS[quantization].bytes_per_weight


def find_slowness(
    quantization: Quantization,
    *,
    device: str,
    machine: Machine,
    shape: Shape,
    format_4bit: Format4bit,
) -> str | None:
    """Return a warning if *quantization* is slow on *device*, or None."""
    if device != "cpu" or quantization == "none":
        return None
    speeds = speeds_of(machine)
    if quantization == "8bit":
        best = choose_4bit(machine, shape)[0]
        gain = speeds[best].decode / speeds["8bit"].decode
        if gain < MARGIN:
            return None
        return (
            f"`--quantization 4bit` is faster on this processor: replies come {gain:.1f} times as "
            "fast, and are less exact"
        )
    if format_4bit == "nf4" and not has_packed_nf4(machine):
        loss = speeds["int4"].decode / speeds["nf4"].decode
        if loss < MARGIN:
            return None
        return (
            "nf4 is slow on this processor, which lacks AVX512_BF16: the plain checkpoint with "
            f"`--quantization 4bit` decodes {loss:.1f} times as fast"
        )
    return None


def find_wait(
    quantization: Quantization, parameters: int, device: str, *, format_4bit: Format4bit
) -> str | None:
    """Return a warning if the first start with *quantization* takes long on *device*, or None."""
    own = is_own(quantization, device, format_4bit=format_4bit)
    seconds = parameters * (_SECONDS if own else _NF4_SECONDS) / 1e9
    if device != "cpu" or quantization == "none" or seconds <= 20:
        return None
    about = format_duration(seconds)
    return f"quantizing takes about {about} the first time; later starts read the result"


def is_own(quantization: Quantization, device: str, *, format_4bit: Format4bit) -> bool:
    """Whether our own kernels compute *quantization* on *device*, without bitsandbytes."""
    return device == "cpu" and (
        quantization == "8bit" or (quantization == "4bit" and format_4bit == "int4")
    )


def _packs(shape: Shape) -> bool:
    heights = (
        shape.hidden,
        shape.intermediate,
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
    )
    widths = (shape.hidden, shape.intermediate, shape.heads * shape.head_dim, shape.cross_inputs)
    return not any(h % _PACK_ROWS for h in heights) and not any(w % _BLOCK for w in widths)
