"""Speeds are measured in turns, compared with the table, and not trusted on a busy machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.core.types import LoadSpec
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import registry_facts
from idefics_cli.models.planning.quantization import choose_4bit
from idefics_cli.models.planning.speeds import SPEEDS
from idefics_cli.selfcheck.speeds import SpeedCheck, check_speeds
from idefics_cli.ui.views.check import render_speeds
from tests.support import machines
from tests.support.bench import FakeLoad
from tests.support.machines import VERSIONS

(FACTS,) = (
    facts for facts in registry_facts(root=Path("/nowhere")) if facts.name == "smolvlm-500m"
)
MACHINE = machines.cpu(
    24, "fma", "avx512f", "avx512_bf16", cores=2, versions={**VERSIONS, "llvmlite": "0.50.0"}
)
# Seconds of a token and of a prompt, with the ratios of the table.
AS_IN_TABLE: dict[str, tuple[float, float]] = {
    name: (1.0 / speed.decode, 10.0 / speed.prompt) for name, speed in SPEEDS[0].speeds.items()
}


class Bench:
    """A processor on which each format takes given seconds, and its clock."""

    def __init__(self, seconds: dict[str, tuple[float, float]]) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.asked: list[str] = []

    def clock(self) -> float:
        return self.now

    def make_probe(self, spec: LoadSpec, machine: Machine) -> Probe:
        quantized = spec.format_4bit if spec.quantization == "4bit" else spec.quantization
        name = spec.dtype if quantized == "none" else quantized
        assert quantized == "nf4" or spec.kernels.step == ("text_step",)
        return Probe(self, name)


class Probe:
    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name

    def decode(self) -> None:
        self.bench.now += self.bench.seconds[self.name][0]

    def read_prompt(self) -> None:
        self.bench.asked.append(self.name)
        self.bench.now += self.bench.seconds[self.name][1]


def check(foreign: float = 0.0, **seconds: tuple[float, float]) -> SpeedCheck:
    bench = Bench({**AS_IN_TABLE, **seconds})
    return check_speeds(
        MACHINE, FACTS, clock=bench.clock, load=FakeLoad(foreign), make_probe=bench.make_probe
    )


def test_all_claims_hold_where_the_table_is_right() -> None:
    found = check()
    assert (found.threads, found.disturbance, found.changes) == (2, None, ())
    assert all(claim.holds for claim in found.claims)
    assert [claim.text for claim in found.claims] == [
        "bf16 decodes 2.8x as fast as float32 here (the table says 2.8x)",
        "bf16 reads prompts 3.2x as fast as float32 here (the table says 3.2x)",
        "8 bit decodes 1.3x as fast as bf16 here (the table says 1.3x)",
        "bf16 reads prompts 1.1x as fast as 8 bit here (the table says 1.1x)",
        "int4 decodes 1.9x as fast as 8 bit here (the table says 1.9x)",
        "int4 reads prompts 1.6x as fast as 8 bit here (the table says 1.6x)",
        "int4 decodes 5.0x as fast as nf4 here (the table says 5.0x)",
        "int4 reads prompts 1.6x as fast as nf4 here (the table says 1.6x)",
    ]
    assert found.trusted is not None
    for name, pair in SPEEDS[0].speeds.items():
        assert found.trusted[name] == pytest.approx(pair)


def test_formats_take_turns() -> None:
    bench = Bench(AS_IN_TABLE)
    check_speeds(MACHINE, FACTS, clock=bench.clock, load=FakeLoad(), make_probe=bench.make_probe)
    # Once to warm up, then in three rounds.
    assert bench.asked == ["float32", "bfloat16", "8bit", "int4", "nf4"] * 4


def test_what_is_off_and_what_is_reversed_is_told_and_changes_plans() -> None:
    # nf4 is twice as fast as in the table for words, but int4 remains faster.
    off = check(nf4=(1 / 2.8, 10 / 2.8))
    assert off.changes == ()
    (claim,) = (claim for claim in off.claims if not claim.holds)
    assert claim.text == "int4 decodes 2.5x as fast as nf4 here (the table says 5.0x)"
    assert f"  {claim.text}: off" in render_speeds(off).splitlines()

    turned = check(nf4=(1 / 14, 10 / 9))
    assert turned.changes == (
        "`idefics doctor --check` measured that nf4 is faster than int4 here, so plans choose it",
    )
    lines = render_speeds(turned).splitlines()
    assert lines[0] == "speeds on 2 threads of the processor; table: measured on AMD Zen 5"
    assert lines[-3:] == [
        "  int4 decodes 0.5x as fast as nf4 here (the table says 5.0x): the other way round",
        "  int4 reads prompts 0.5x as fast as nf4 here (the table says 1.6x): the other way round",
        f"  {turned.changes[0]}",
    ]
    record = turned.to_dict()
    assert record["changes"] == list(turned.changes)
    assert record["claims"][-1]["is_reversed"]  # type: ignore[index] # a list of dicts
    assert turned.trusted is not None
    there = replace(MACHINE, measured_speeds=turned.trusted)
    assert choose_4bit(there, FACTS.shape) == ("nf4", "int4")


def test_a_busy_machine_is_told_and_its_figures_are_not_trusted() -> None:
    busy = check(foreign=100.0, nf4=(1 / 14, 10 / 9))
    assert (busy.trusted, busy.changes) == (None, ())
    lines = render_speeds(busy).splitlines()
    assert len(lines) == 2 + len(busy.claims)
    assert lines[1] == (
        "  disturbed: other programs kept 1.0 cores busy, so these figures are not kept; repeat "
        "the check on a quiet machine"
    )


def test_steps_of_different_lengths_are_not_trusted_either() -> None:
    bench = Bench(dict(AS_IN_TABLE))

    class Stumbling(Probe):
        def decode(self) -> None:
            super().decode()
            # Other programs run after the first round.
            self.bench.now += 5.0 if len(bench.asked) > 10 else 0.0

    found = check_speeds(
        MACHINE,
        FACTS,
        clock=bench.clock,
        load=FakeLoad(),
        make_probe=lambda spec, machine: Stumbling(bench, bench.make_probe(spec, machine).name),
    )
    assert found.disturbance == "equal steps took different times"
    assert found.trusted is None


def test_a_wrong_kernel_is_not_measured() -> None:
    bench = Bench(AS_IN_TABLE)
    specs: list[LoadSpec] = []

    def make_probe(spec: LoadSpec, machine: Machine) -> Probe:
        specs.append(spec)
        return bench.make_probe(spec, machine)

    check_speeds(
        MACHINE,
        FACTS,
        clock=bench.clock,
        load=FakeLoad(),
        make_probe=make_probe,
        broken=["bf16_12bit"],
    )
    assert [spec.kernels.text[:1] for spec in specs] == [
        (),
        ("bf16_packed",),
        ("int8_compiled",),
        ("int4_compiled",),
        (),
    ]
