"""Rounds in turns, medians, and the load of the machine."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from idefics_cli.bench.measure import (
    Instruments,
    Pace,
    PairedRounds,
    Series,
    measure_in_turns,
)
from idefics_cli.hardware.load import SystemLoad
from tests.support.bench import FakeContender, FakeLoad, ask
from tests.support.fakes import FakeClock


def fight(
    rounds: int = 3,
    *,
    ours: Sequence[float] = (1.0,),
    plain: Sequence[float] = (2.0,),
    clock: FakeClock | None = None,
    seconds: float = 1e9,
    foreign: float = 0.0,
    readings: Iterator[float] | None = None,
) -> tuple[PairedRounds, list[tuple[str, str]]]:
    log: list[tuple[str, str]] = []
    instruments = Instruments(
        clock or FakeClock(),
        FakeLoad(foreign),
        None if readings is None else lambda: next(readings),
    )
    paired = measure_in_turns(
        lambda number: [ask(f"round {number}")],
        FakeContender("ours", log, seconds=ours),
        FakeContender("plain", log, seconds=plain),
        pace=Pace(rounds, seconds),
        instruments=instruments,
    )
    return paired, log


def test_both_sides_answer_the_same_in_turns_and_the_first_changes() -> None:
    _, log = fight(3)
    assert log == [
        ("plain", "round 0"),
        ("ours", "round 0"),
        ("ours", "round 1"),
        ("plain", "round 1"),
        ("plain", "round 2"),
        ("ours", "round 2"),
        ("ours", "round 3"),
        ("plain", "round 3"),
    ]


def test_the_warm_up_is_not_measured_but_its_answers_count() -> None:
    paired, _ = fight(2, ours=(99.0, 1.0, 2.0))
    assert [r.ours.seconds for r in paired.rounds] == [1.0, 2.0]
    assert paired.warm_up.ours.seconds == 99.0
    assert len(paired.all_rounds) == 3


def test_no_round_begins_after_the_time_is_up_but_one_is_always_made() -> None:
    assert len(fight(9, seconds=0.0)[0].rounds) == 1
    # The clock advances by 1 at each reading: one at the beginning and one after each round.
    assert len(fight(9, seconds=4.0)[0].rounds) == 4


def test_no_garbage_is_collected_while_a_side_answers() -> None:
    log: list[tuple[str, str]] = []
    sides = (FakeContender("ours", log), FakeContender("plain", log))
    assert gc.isenabled()
    measure_in_turns(
        lambda number: [ask("x")],
        *sides,
        pace=Pace(1, 1e9),
        instruments=Instruments(FakeClock(), FakeLoad()),
    )
    assert gc.isenabled()
    assert [side.collected_garbage for side in sides] == [[False, False], [False, False]]


def test_the_median_and_the_least_are_of_all_rounds() -> None:
    series = Series((3.0, 1.0, 10.0, 2.0))
    assert (series.median, series.least, series.most) == (2.5, 1.0, 10.0)


def test_foreign_load_is_what_others_used_by_the_wall_clock() -> None:
    paired, _ = fight(1, foreign=3.0, clock=FakeClock(2.0))
    # The clock is read before, twice for the pace, and after: 6 seconds pass.
    assert paired.foreign_cores == pytest.approx(3.0 / 6.0)


def test_the_load_is_read_from_the_first_line_of_proc_stat(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 9999 888 1 2 3 0 0\ncpu0 1 1 1 1\n")
    busy = SystemLoad(tmp_path).busy_seconds()
    assert busy == pytest.approx(156 / os.sysconf("SC_CLK_TCK"))
    assert SystemLoad(tmp_path / "none").busy_seconds() is None


def test_our_own_load_grows_with_our_work() -> None:
    load = SystemLoad()
    before = load.own_seconds()
    while load.own_seconds() == before:
        math.factorial(2000)
    assert load.own_seconds() > before
