"""The check of the table of speeds: each format of weights decodes and reads prompts, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Protocol

from idefics_cli.core.types import LoadSpec
from idefics_cli.hardware.load import FOREIGN_LIMIT, ForeignLoad, MachineLoad
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import ModelFacts
from idefics_cli.models.kernels.table import KERNELS
from idefics_cli.models.planning.kernels import choose_kernels
from idefics_cli.models.planning.placement import Placement, default_threads
from idefics_cli.models.planning.quantization import choose_4bit
from idefics_cli.models.planning.speeds import (
    MARGIN,
    SAME_ACCURACY,
    Speed,
    SpeedFormat,
    SpeedRow,
    cpu_dtypes,
    find_check_note,
    find_row,
)

_ROUNDS, _PROMPTS, _TOKENS = 5, 3, 3
# A claim of the table holds if the measured ratio differs from it by at most this factor.
_OFF = 1.5
# Rounds of one format differ by less than this factor, unless something else disturbs them.
_UNSTEADY = 1.5
_NAMES: Mapping[SpeedFormat, str] = {"bfloat16": "bf16", "8bit": "8 bit"}
_WORK = {"decode": "decodes", "prompt": "reads prompts"}


class Probe(Protocol):
    """A model in one format, as `models/loading/speed_probe.py` makes it."""

    def read_prompt(self) -> None:
        """Run a prompt."""

    def decode(self) -> None:
        """Run one token."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the table says about two formats, and what was measured.

    Attributes:
        faster: The format that is faster by the table.
        slower: The other format.
        work: "decode" or "prompt".
        table: How many times as fast the first format is, by the table.
        measured: The same, as measured here.
    """

    faster: SpeedFormat
    slower: SpeedFormat
    work: str
    table: float
    measured: float

    @property
    def is_reversed(self) -> bool:
        """Whether the other format is faster here."""
        return self.measured * MARGIN < 1

    @property
    def holds(self) -> bool:
        """Whether the measured ratio is close to that of the table."""
        return not self.is_reversed and 1 / _OFF <= self.measured / self.table <= _OFF

    @property
    def text(self) -> str:
        """The claim in words."""
        first, second = (_NAMES.get(name, name) for name in (self.faster, self.slower))
        return (
            f"{first} {_WORK[self.work]} {self.measured:.1f}x as fast as {second} here "
            f"(the table says {self.table:.1f}x)"
        )


@dataclass(frozen=True, slots=True)
class SpeedCheck:
    """The measured speeds of the formats on the CPU.

    Attributes:
        row: The row of the table for this processor.
        threads: Number of threads.
        measured: The measured speed of each format.
        disturbance: Why the figures are not to be trusted, in words; None if they are.
        changes: What plans choose otherwise from now on, in words.
    """

    row: SpeedRow
    threads: int
    measured: Mapping[SpeedFormat, Speed]
    disturbance: str | None = None
    changes: tuple[str, ...] = ()

    @property
    def trusted(self) -> Mapping[str, tuple[float, float]] | None:
        """The speeds as `Machine.measured_speeds`; None if something disturbed them."""
        return None if self.disturbance else _by_name(self.measured)

    @property
    def claims(self) -> list[Claim]:
        """What the table says about each two neighbouring formats, and what was measured."""
        pairs: list[tuple[SpeedFormat, SpeedFormat]] = []
        pairs += pairwise(name for name in self.measured if name != "nf4")
        if {"int4", "nf4"} <= self.measured.keys():
            pairs.append(("int4", "nf4"))
        return [self._claim(*pair, work) for pair in pairs for work in _WORK]

    def _claim(self, first: SpeedFormat, second: SpeedFormat, work: str) -> Claim:
        table, here = (
            getattr(speeds[first], work) / getattr(speeds[second], work)
            for speeds in (self.row.speeds, self.measured)
        )
        if table < 1:
            return Claim(second, first, work, 1 / table, 1 / here)
        return Claim(first, second, work, table, here)

    def to_dict(self) -> dict[str, object]:
        """Return the check for JSON."""
        return {
            "kind": self.row.kind,
            "compiles": self.row.compiles,
            "source": self.row.source,
            "threads": self.threads,
            "disturbance": self.disturbance,
            "table": {name: speed._asdict() for name, speed in self.row.speeds.items()},
            "measured": {name: speed._asdict() for name, speed in self.measured.items()},
            "changes": list(self.changes),
            "claims": [
                {
                    **asdict(claim),
                    "holds": claim.holds,
                    "is_reversed": claim.is_reversed,
                    "text": claim.text,
                }
                for claim in self.claims
            ],
        }


MakeProbe = Callable[[LoadSpec, Machine], Probe]


def check_speeds(
    machine: Machine,
    facts: ModelFacts,
    *,
    clock: Callable[[], float],
    load: MachineLoad,
    make_probe: MakeProbe | None = None,
    broken: Collection[str] = (),
) -> SpeedCheck:
    """Measure each format that a plan may choose on the CPU; this takes about two seconds.

    Args:
        machine: This machine.
        facts: The default model, whose shape the measured layers have.
        clock: Returns seconds.
        load: Returns the CPU time that programs have used.
        make_probe: Makes the model of a spec; None makes a `SpeedProbe`.
        broken: Kernels that compute wrongly here, and are left out.
    """
    from idefics_cli.models.kernels.openmp import torch_threads

    if make_probe is None:
        from idefics_cli.models.loading.speed_probe import SpeedProbe

        make_probe = SpeedProbe
    option = Placement("cpu", (), "float32", "none", splitting=False)
    threads = default_threads(option, facts, machine) or 1
    watch = ForeignLoad(load, clock)
    with torch_threads(threads):
        probes = {
            name: make_probe(_spec_of(name, facts.family, machine, broken), machine)
            for name in _formats(facts, machine)
        }
        for probe in probes.values():
            probe.read_prompt()
            probe.decode()
        with watch.watching():
            times = _RoundTimes.measure(probes, clock)
    return _result(times, watch, machine, threads)


def _formats(facts: ModelFacts, machine: Machine) -> tuple[SpeedFormat, ...]:
    """Return the formats that a plan may choose, in an order in which neighbours are compared."""
    formats: tuple[SpeedFormat, ...] = ("float32", "bfloat16", "8bit", "int4")
    return (*formats, "nf4") if "nf4" in choose_4bit(machine, facts.shape) else formats


def _result(times: _RoundTimes, watch: ForeignLoad, machine: Machine, threads: int) -> SpeedCheck:
    measured, disturbance = times.speeds(), times.disturbance(watch)
    changed = replace(machine, measured_speeds=_by_name(measured))
    changes = () if disturbance else _changes(changed)
    return SpeedCheck(find_row(machine), threads, measured, disturbance, changes)


def _by_name(speeds: Mapping[SpeedFormat, Speed]) -> dict[str, tuple[float, float]]:
    return {name: (speed.decode, speed.prompt) for name, speed in speeds.items()}


def _changes(machine: Machine) -> tuple[str, ...]:
    notes = (find_check_note(name, machine) for pair in SAME_ACCURACY for name in pair)
    return tuple(f"{note}, so plans choose it" for note in notes if note is not None)


def _spec_of(name: SpeedFormat, family: str, machine: Machine, broken: Collection[str]) -> LoadSpec:
    spec = LoadSpec("", family, device="cpu", dtype=cpu_dtypes(machine)[0])
    if name == "float32" or name == "bfloat16":
        spec = replace(spec, dtype=name)
    elif name == "8bit":
        spec = replace(spec, quantization="8bit")
    else:
        spec = replace(spec, quantization="4bit", format_4bit=name)
    sound = {key: kernel for key, kernel in KERNELS.items() if key not in broken}
    return replace(spec, kernels=choose_kernels(spec, machine, kernels=sound))


@dataclass(frozen=True, slots=True)
class _RoundTimes:
    """Seconds of each round: for a token, and for a prompt."""

    decode: dict[SpeedFormat, list[float]] = field(default_factory=dict)
    prompt: dict[SpeedFormat, list[float]] = field(default_factory=dict)

    @classmethod
    def measure(
        cls, probes: Mapping[SpeedFormat, Probe], clock: Callable[[], float]
    ) -> _RoundTimes:
        times = cls({name: [] for name in probes}, {name: [] for name in probes})
        for number in range(_ROUNDS):
            for name, probe in probes.items():
                if number < _PROMPTS:
                    begin = clock()
                    probe.read_prompt()
                    times.prompt[name].append(clock() - begin)
                # The first token after another format finds nothing in the caches.
                probe.decode()
                begin = clock()
                for _ in range(_TOKENS):
                    probe.decode()
                times.decode[name].append((clock() - begin) / _TOKENS)
        return times

    def speeds(self) -> dict[SpeedFormat, Speed]:
        """Return the median speeds, relative to float32."""
        decode, prompt = (
            {name: statistics.median(rounds) for name, rounds in times.items()}
            for times in (self.decode, self.prompt)
        )
        return {
            name: Speed(decode["float32"] / decode[name], prompt["float32"] / prompt[name])
            for name in decode
        }

    def disturbance(self, watch: ForeignLoad) -> str | None:
        """Return in words what disturbed the figures, or None."""
        if watch.cores is not None and watch.cores > FOREIGN_LIMIT:
            return f"other programs kept {watch.cores:.1f} cores busy"
        rounds = [*self.decode.values(), *self.prompt.values()]
        if any(statistics.median(each) > _UNSTEADY * min(each) for each in rounds):
            return "equal steps took different times"
        return None
