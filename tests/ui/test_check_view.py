"""The last line of a check agrees with its exit code, and a table has every way."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from idefics_cli.core.types import KernelChoice, LoadSpec
from idefics_cli.models.planning.verdicts import Fault, Verdict
from idefics_cli.selfcheck.results import CheckResult, ProbeRow, WayResult, is_sound
from idefics_cli.selfcheck.ways import Way
from idefics_cli.ui.terminal.console import Console
from idefics_cli.ui.views.check import check_record, render_verdicts, show_check, verdict_line
from tests.support.commands import Stream

SPEC = LoadSpec("demo", "idefics2", kernels=KernelChoice(norm=("rms_norm",)))
REFERENCE = WayResult(
    Way(replace(SPEC, kernels=KernelChoice()), is_planned=False, is_reference=True),
    "right",
    pace=1.0,
)
PLANNED = WayResult(Way(SPEC), "right", pace=0.9)
SPARE = WayResult(Way(replace(SPEC, dtype="bfloat16"), is_planned=False), "right", pace=2.0)
PROBE = ProbeRow("cuda:0", "bfloat16", "sdpa", "9x3x64", "right", "", 8, 8, 0.002, 0.03)


def wrong(result: WayResult) -> WayResult:
    return replace(result, status="wrong", reason="batch: 3 of 12 right")


@pytest.mark.parametrize(
    ("results", "sound", "line"),
    [
        (
            [REFERENCE, PLANNED, SPARE],
            True,
            "sound: 3 ways right, 1 slower than plain float32",
        ),
        (
            [REFERENCE, PLANNED, wrong(SPARE)],
            True,
            "sound: 1 of 3 ways wrong, but plans do not choose them, "
            "first cpu bfloat16 sdpa with kernels, 1 slower than plain float32",
        ),
        (
            [REFERENCE, wrong(PLANNED)],
            False,
            "not sound: 1 of 2 ways wrong, and plans leave them out, "
            "first cpu float32 sdpa with kernels",
        ),
        (
            [replace(PROBE, status="wrong", reason="decode is off"), REFERENCE],
            False,
            "not sound: 1 of 2 ways wrong, and plans leave them out, "
            "first attention cuda:0 bfloat16 sdpa 9x3x64",
        ),
        (
            [PROBE, wrong(REFERENCE)],
            False,
            "not sound: plain float32 on the processor is wrong: batch: 3 of 12 right",
        ),
    ],
)
def test_the_last_line_agrees_with_the_exit_code(
    results: list[CheckResult], sound: bool, line: str
) -> None:
    assert is_sound(results) is sound
    assert verdict_line(results) == line
    record = check_record(results, "kept", None)
    assert (record["sound"], record["verdict"], record["note"]) == (sound, line, "kept")


def test_the_table_fits_into_80_columns_and_reasons_follow_it() -> None:
    tiled = replace(PROBE, device="cpu", attention="cpu_sdpa_tiled", heads="15x5x64")
    refused = "`--device cuda` needs another torch: 2.13.0+cpu is built for the CPU"
    spare = replace(SPARE, way=Way(replace(SPEC, quantization="4bit", format_4bit="int4")))
    results: list[CheckResult] = [
        replace(tiled, status="wrong", reason="decode is off"),
        spare,
        WayResult(Way(replace(SPEC, device="cuda"), refusal=refused), "refused", refused),
    ]
    out = Stream(terminal=True)
    console = Console(out, out, environ={"COLUMNS": "80", "TERM": "xterm-256color"})
    show_check(console, results, "kept", None)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.text()).splitlines()
    assert max(map(len, lines)) <= 80
    rows = [" ".join(line.split()) for line in lines]
    assert "way right measured result" in rows
    assert f"{tiled.name} 8/8 off 2e-03 wrong" in rows
    assert f"{spare.way.name} 2.00 x right, slower" in rows
    told = " ".join(rows)
    assert f"! {tiled.name}: wrong: decode is off ! cuda: refused: {refused} kept" in told


def test_nothing_checked_is_not_sound() -> None:
    assert not is_sound([])


def test_a_person_reads_when_a_device_was_checked_and_what_was_wrong() -> None:
    fault = Fault("cuda:0", "decode is off by 0.5", dtype="bfloat16", attention="sdpa")
    verdicts = {
        "cpu": Verdict("cpu", "2026-11-29 01:30", True),
        "cuda:0": Verdict("cuda:0", "2026-11-29 01:31", False, ("9x3x64",), (fault,)),
    }
    assert render_verdicts(verdicts).splitlines() == [
        "checks",
        "  cpu     2026-11-29 01:30 UTC, every way       nothing wrong",
        "  cuda:0  2026-11-29 01:31 UTC, attention only  wrong: bfloat16 sdpa on cuda:0 "
        "(decode is off by 0.5)",
    ]
