"""The table of speeds: how fast processors of each kind compute with each format of weights.

Plans follow two rules:

1. Accuracy comes before speed. Weights that are not quantized come before 8 bit, and 8 bit before
   4 bit. A plan takes fewer bits if more do not fit the memory, never only because they are faster.
   float32 comes before bfloat16, except on processors that compute in bfloat16.
2. This table orders what is left: float32 and bfloat16 on processors that compute in both, and int4
   and nf4. Where `idefics doctor --check` has measured another order, that order counts.

`selfcheck/speeds.py` measures what the table says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar

from idefics_cli.core.types import DtypeName
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.kernels.table import compiler_problem

SpeedFormat = Literal["float32", "bfloat16", "8bit", "int4", "nf4"]
"""Format of the weights of a text model on a CPU."""
Kind = Literal["avx512_bf16", "avx512", "avx2", "bf16", "other"]
"""Kind of processors: x86 with the named instructions, or another with or without bfloat16."""
_Format = TypeVar("_Format", bound=str)

SAME_ACCURACY: tuple[tuple[SpeedFormat, SpeedFormat], ...] = (
    ("float32", "bfloat16"),
    ("int4", "nf4"),
)
"""Pairs of formats of which plans take the faster one; the first only where bfloat16 is native."""
# Equal runs differ by less than this factor, so a smaller difference decides nothing.
MARGIN = 1.1


class Speed(NamedTuple):
    """The speed of a format, relative to weights of four bytes in float32 on the same machine.

    Float32 with weights in 12 bits, which plans choose on processors that emulate bfloat16, is as
    fast as bfloat16: their kernels are the same.

    Attributes:
        decode: Tokens of a reply per second, for one reply at a time.
        prompt: Tokens of a prompt per second.
    """

    decode: float
    prompt: float

    @property
    def cost(self) -> float:
        """Time for one picture with its reply, where float32 takes 3.

        A reply of 40 words takes a third of the time in float32. The picture and its prompt take
        the rest (SmolVLM-500M, one picture of 512 pixels).
        """
        return 1 / self.decode + 2 / self.prompt


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """The speeds of one kind of processors.

    Attributes:
        kind: The kind.
        compiles: Whether kernels can be compiled, for which llvmlite is needed.
        source: Where the speeds come from, in words.
        speeds: The speed of each format.
    """

    kind: Kind
    compiles: bool
    source: str
    speeds: Mapping[SpeedFormat, Speed]


def _speeds(
    *,
    bfloat16: tuple[float, float],
    eight: tuple[float, float],
    int4: tuple[float, float],
    nf4: tuple[float, float],
) -> Mapping[SpeedFormat, Speed]:
    """Return the speeds by format, from pairs (decode, prompt); *eight* is that of 8bit."""
    return MappingProxyType(
        {
            "float32": Speed(1, 1),
            "bfloat16": Speed(*bfloat16),
            "8bit": Speed(*eight),
            "int4": Speed(*int4),
            "nf4": Speed(*nf4),
        }
    )


_MEASURED = "measured on AMD Zen 5"
# The switches of torch and oneDNN hid the instructions. MKL computed float32 with all of them.
_HIDDEN = "measured on AMD Zen 5, newer instructions hidden"

# All were measured with 2 threads.
SPEEDS: tuple[SpeedRow, ...] = (
    SpeedRow(
        "avx512_bf16",
        True,
        _MEASURED,
        _speeds(bfloat16=(2.8, 3.2), eight=(3.7, 2.9), int4=(7.0, 4.5), nf4=(1.4, 2.8)),
    ),
    SpeedRow(
        "avx512_bf16",
        False,
        _MEASURED,
        _speeds(bfloat16=(3.3, 3.7), eight=(4.3, 3.0), int4=(5.4, 1.8), nf4=(4.0, 3.0)),
    ),
    SpeedRow(
        "avx512",
        True,
        f"{_HIDDEN}; bfloat16 on a Xeon without AVX512_BF16",
        _speeds(bfloat16=(2.0, 0.7), eight=(3.6, 2.8), int4=(6.6, 4.3), nf4=(0.3, 1.0)),
    ),
    SpeedRow(
        "avx512",
        False,
        _HIDDEN,
        _speeds(bfloat16=(2.7, 1.0), eight=(4.1, 1.0), int4=(5.0, 1.6), nf4=(1.2, 1.0)),
    ),
    SpeedRow(
        "avx2",
        True,
        f"measured on AMD Zen 3; nf4 {_HIDDEN}",
        _speeds(bfloat16=(2.0, 1.4), eight=(3.0, 1.6), int4=(5.5, 1.9), nf4=(0.5, 1.0)),
    ),
    SpeedRow(
        "avx2",
        False,
        _HIDDEN,
        _speeds(bfloat16=(3.7, 1.0), eight=(3.8, 1.0), int4=(3.3, 0.8), nf4=(0.8, 0.9)),
    ),
    SpeedRow(
        "bf16",
        False,
        "estimated: bfloat16 by its bytes, the rest as for other processors",
        _speeds(bfloat16=(1.9, 1.9), eight=(0.6, 0.9), int4=(0.2, 0.6), nf4=(0.7, 0.9)),
    ),
    SpeedRow(
        "other",
        False,
        _HIDDEN,
        _speeds(bfloat16=(1.9, 0.14), eight=(0.6, 0.9), int4=(0.2, 0.6), nf4=(0.7, 0.9)),
    ),
)


def kind_of(machine: Machine) -> Kind:
    """Return the kind of the processor of *machine*."""
    if machine.is_x86 and machine.cpu_bf16:
        return "avx512_bf16"
    if "avx512f" in machine.cpu_flags:
        return "avx512"
    if "avx2" in machine.cpu_flags:
        return "avx2"
    return "bf16" if machine.cpu_bf16 else "other"


def find_row(machine: Machine) -> SpeedRow:
    """Return the row of the table for the processor of *machine*."""
    key = (kind_of(machine), compiler_problem(machine) is None)
    return next(row for row in SPEEDS if (row.kind, row.compiles) == key)


def speeds_of(machine: Machine) -> Mapping[SpeedFormat, Speed]:
    """Return the speeds on *machine*: those of a check, and of the table for other formats."""
    measured = {
        name: Speed(*machine.measured_speeds[name])
        for name in find_row(machine).speeds
        if name in machine.measured_speeds
    }
    return {**find_row(machine).speeds, **measured}


def order_by_speed(formats: Sequence[_Format], machine: Machine) -> tuple[_Format, ...]:
    """Return *formats*, members of `SpeedFormat`, the fastest first."""
    table, here = find_row(machine).speeds, speeds_of(machine)
    ordered, again = _by_cost(formats, table), _by_cost(formats, here)
    is_other = _cost(here, ordered[0]) > MARGIN * _cost(here, again[0])
    return again if is_other else ordered


def find_check_note(chosen: str, machine: Machine) -> str | None:
    """Return in words that a check of *machine* put *chosen* before the other format of its pair.

    Returns:
        None if the table does so too, or if the other format comes first.
    """
    pairs = SAME_ACCURACY if machine.cpu_bf16 else SAME_ACCURACY[1:]
    formats = next((pair for pair in pairs if chosen in pair), None)
    if formats is None:
        return None
    first, second = order_by_speed(formats, machine)
    if chosen != first or first == _by_cost(formats, find_row(machine).speeds)[0]:
        return None
    return f"`idefics doctor --check` measured that {first} is faster than {second} here"


def cpu_dtypes(machine: Machine) -> tuple[DtypeName, ...]:
    """Return the dtypes for weights that are not quantized on the CPU of *machine*, best first."""
    if not machine.cpu_bf16:
        return ("float32", "bfloat16")
    plain: tuple[DtypeName, ...] = ("float32", "bfloat16")
    ordered = order_by_speed(plain, machine)
    # float32 does not fit where bfloat16, which takes half the memory, does not.
    return ordered[:1] if ordered[0] == "bfloat16" else ordered


def is_slow_in_bfloat16(machine: Machine) -> bool:
    """Return whether replies or prompts take longer in bfloat16 than in float32 on *machine*."""
    return min(speeds_of(machine)["bfloat16"]) < 1


def describe_bfloat16(machine: Machine) -> str:
    """Return in words how fast bfloat16 is on *machine*, compared with float32."""
    speed = speeds_of(machine)["bfloat16"]
    words, prompts = 1 / speed.decode, 1 / speed.prompt
    return f"words take {words:.1f} times as long as in float32, and prompts {prompts:.1f} times"


def _by_cost(
    formats: Sequence[_Format], speeds: Mapping[SpeedFormat, Speed]
) -> tuple[_Format, ...]:
    return tuple(sorted(formats, key=lambda name: _cost(speeds, name)))


def _cost(speeds: Mapping[SpeedFormat, Speed], name: str) -> float:
    return speeds[name].cost  # type: ignore[index] # a member of the Literal
