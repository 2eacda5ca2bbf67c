"""The last line of a check agrees with its exit code, and a table has every way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from idefics_cli.core.types import KernelChoice, LoadSpec
from idefics_cli.models.planning.verdicts import Fault, Verdict
from idefics_cli.selfcheck.results import CheckResult, ProbeRow, WayResult, is_sound
from idefics_cli.selfcheck.ways import Way
from idefics_cli.ui.views.check import check_record, render_verdicts, verdict_line

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
