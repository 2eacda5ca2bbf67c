"""The learning rate over a run."""

from __future__ import annotations

from itertools import pairwise

import pytest

from idefics_cli.training.schedule import CosineSchedule, Schedule


def test_the_learning_rate_rises_stays_and_falls() -> None:
    schedule = Schedule(peak=1.0, warm_steps=4, cool_share=0.5)

    assert [schedule.learning_rate(0, step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [schedule.learning_rate(p, 99) for p in (0.5, 0.75)] == [1, 0.5]
    # Training never stops before its last step.
    assert schedule.learning_rate(1, 99) == pytest.approx(0.005)
    assert [schedule.cooling(p) for p in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]


def test_the_cosine_rises_for_ten_steps_and_ends_at_nothing() -> None:
    schedule = CosineSchedule.of_run(2.0, 300)
    rates = [schedule.learning_rate(step) for step in range(300)]
    assert schedule.warm_steps == 10
    assert rates[:10] == [pytest.approx(0.2 * step) for step in range(1, 11)]
    assert rates[10] == 2.0
    assert rates[155] == pytest.approx(1.0)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-3


@pytest.mark.parametrize(("steps", "warm"), [(1, 1), (6, 2), (29, 10), (1000, 30)])
def test_the_rise_takes_three_percent_at_least_ten_steps_at_most_a_third(
    steps: int, warm: int
) -> None:
    assert CosineSchedule.of_run(1.0, steps).warm_steps == warm
