"""The table of speeds decides between formats of weights, and a check of the machine can differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from idefics_cli.core.units import GIB
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import registry_facts
from idefics_cli.models.planning.plan import Plan, PlanChoices, make_plan
from idefics_cli.models.planning.quantization import choose_4bit
from idefics_cli.models.planning.speeds import SPEEDS, Speed, SpeedFormat, cpu_dtypes, find_row
from tests.support import machines
from tests.support.machines import VERSIONS

FACTS = {facts.name: facts for facts in registry_facts(root=Path("/nowhere"))}
COMPILER = {"versions": {**VERSIONS, "llvmlite": "0.50.0"}}
COMPILING = machines.cpu(24, "fma", "avx512f", "avx512_bf16", **COMPILER)
# Each machine with the row of the table, the dtypes and the 4-bit formats, the best first.
MACHINES: Mapping[str, tuple[Machine, tuple[str, bool], str, tuple[str, ...]]] = {
    "Zen 4": (COMPILING, ("avx512_bf16", True), "bfloat16", ("int4", "nf4")),
    "Zen 4 on Windows": (
        machines.cpu(24, "fma", "avx512f", "avx512_bf16", platform="Windows AMD64", **COMPILER),
        ("avx512_bf16", False),
        "bfloat16",
        ("nf4", "int4"),
    ),
    "Skylake": (
        machines.cpu(24, "fma", "avx512f", **COMPILER),
        ("avx512", True),
        "float32",
        ("int4",),
    ),
    "Skylake without llvmlite": (
        machines.cpu(24, "fma", "avx512f"),
        ("avx512", False),
        "float32",
        ("int4",),
    ),
    "Haswell": (machines.cpu(24, "fma", **COMPILER), ("avx2", True), "float32", ("int4",)),
    "Haswell without llvmlite": (
        machines.cpu(24, "fma"),
        ("avx2", False),
        "float32",
        ("int4",),
    ),
    "Graviton 3": (
        machines.machine(24, flags=("bf16",), platform="Linux aarch64"),
        ("bf16", False),
        "bfloat16",
        ("int4",),
    ),
    "Nehalem": (machines.machine(24, flags=()), ("other", False), "float32", ("int4",)),
}


def plan(machine: Machine, model: str = "smolvlm-500m", **choices: str) -> Plan:
    return make_plan(FACTS[model], PlanChoices(**choices), machine)  # type: ignore[arg-type] # texts only


def why(made: Plan, subject: str) -> str:
    return next(reason.why for reason in made.reasons if reason.subject == subject)


def measured(**speeds: tuple[float, float]) -> Machine:
    """Return a machine with compiled kernels on which a check found other *speeds*."""
    return replace(COMPILING, measured_speeds=speeds)


@pytest.mark.parametrize("name", MACHINES)
def test_each_processor_has_a_row_that_decides(name: str) -> None:
    machine, row, dtype, formats = MACHINES[name]
    assert (find_row(machine).kind, find_row(machine).compiles) == row
    assert cpu_dtypes(machine)[0] == plan(machine).spec.dtype == dtype
    assert choose_4bit(machine, FACTS["smolvlm-500m"].shape) == formats
    assert plan(machine, quantization="4bit").spec.format_4bit == formats[0]


def test_every_row_has_every_format_and_says_where_it_comes_from() -> None:
    assert len({(row.kind, row.compiles) for row in SPEEDS}) == len(SPEEDS)
    for row in SPEEDS:
        assert set(row.speeds) == set(get_args(SpeedFormat))
        assert row.speeds["float32"] == Speed(1, 1)
        assert row.source.startswith(("measured", "estimated"))


def test_fewer_bits_are_only_for_less_memory() -> None:
    found = {}
    for free in (24, 16, 13, 12):
        spec = plan(replace(COMPILING, free_ram_bytes=free * GIB), "idefics2-8b").spec
        assert spec.splitting is None  # pictures keep their tiles
        found[free] = (spec.quantization, spec.format_4bit if spec.quantization == "4bit" else "")
    assert found == {
        24: ("none", ""),
        16: ("8bit", ""),
        13: ("4bit", "int4"),
        12: ("4bit", "nf4"),
    }


def test_a_reversed_measurement_changes_the_plan_and_is_the_reason() -> None:
    usual = plan(COMPILING, quantization="4bit")
    assert (usual.spec.format_4bit, why(usual, "quantization")) == ("int4", "asked for")
    other = plan(measured(int4=(1.2, 2.0), nf4=(3.0, 3.0)), quantization="4bit")
    assert other.spec.format_4bit == "nf4"
    assert why(other, "quantization") == (
        "asked for; `idefics doctor --check` measured that nf4 is faster than int4 here"
    )
    exact = plan(measured(bfloat16=(0.5, 0.5)))
    assert exact.spec.dtype == "float32"
    assert why(exact, "dtype") == (
        "`idefics doctor --check` measured that float32 is faster than bfloat16 here"
    )


def test_a_small_difference_changes_nothing() -> None:
    assert plan(measured(int4=(3.0, 3.0), nf4=(3.1, 3.1)), quantization="4bit") == plan(
        measured(int4=(3.0, 3.0), nf4=(2.0, 2.0)), quantization="4bit"
    )


def test_bfloat16_is_not_chosen_for_speed_where_the_processor_lacks_it() -> None:
    machine, *_ = MACHINES["Haswell"]
    fast = replace(machine, measured_speeds={"bfloat16": (9.0, 9.0)})
    made = plan(fast)
    assert made.spec.dtype == "float32"
    assert why(made, "dtype") == (
        "the most exact, and as fast as bfloat16: most weights take 12 bits"
    )
    # The files of this model are in float32, and may hold numbers that bfloat16 does not have.
    wide = make_plan(FACTS["smolvlm2-500m"], PlanChoices(), fast)
    assert wide.spec.dtype == "float32"
    assert why(wide, "dtype") == (
        "the most exact; in bfloat16, words take 0.1 times as long as in float32, and prompts 0.1 "
        "times"
    )


def test_bfloat16_is_warned_of_where_float32_is_as_fast_or_faster() -> None:
    skylake, *_ = MACHINES["Skylake"]
    slow = "this processor lacks bfloat16: "
    assert plan(skylake, dtype="bfloat16").warnings[0] == (
        f"{slow}float32 is more exact, and as fast"
    )
    wide = make_plan(FACTS["smolvlm2-500m"], PlanChoices(dtype="bfloat16"), skylake)
    assert wide.warnings[0] == (
        f"{slow}words take 0.5 times as long as in float32, and prompts 1.4 times"
    )
    assert not plan(MACHINES["Haswell"][0], dtype="bfloat16").warnings


def hint(machine: Machine) -> list[str]:
    return [w for w in plan(machine, quantization="8bit").warnings if "4bit` is faster" in w]


def test_the_hint_that_4_bit_is_faster_than_8_comes_with_the_factor_or_not_at_all() -> None:
    assert hint(COMPILING) == [
        "`--quantization 4bit` is faster on this processor: replies come 1.9 times as fast, and "
        "are less exact"
    ]
    # 8 bit decodes as fast as nf4 there.
    assert hint(MACHINES["Zen 4 on Windows"][0]) == []
    assert hint(measured(**{"8bit": (4.0, 3.0), "int4": (4.0, 3.0)})) == []


def test_the_first_start_is_long_for_nf4_and_short_for_int4() -> None:
    def waits(machine: Machine, model: str) -> list[str]:
        made = plan(replace(machine, free_ram_bytes=60 * GIB), model, quantization="4bit")
        return [warning for warning in made.warnings if "the first time" in warning]

    assert waits(COMPILING, "idefics2-8b") == []
    assert waits(MACHINES["Zen 4 on Windows"][0], "idefics2-8b") == [
        "quantizing takes about 2 min the first time; later starts read the result"
    ]
    assert waits(COMPILING, "idefics-80b") == [
        "quantizing takes about 3 min the first time; later starts read the result"
    ]
