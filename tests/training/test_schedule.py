"""The learning rate over a run."""

from __future__ import annotations

import pytest

from idefics_cli.training.schedule import Schedule


def test_the_learning_rate_rises_stays_and_falls() -> None:
    schedule = Schedule(peak=1.0, warm_steps=4, cool_share=0.5)

    assert [schedule.learning_rate(0, step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [schedule.learning_rate(p, 99) for p in (0.5, 0.75)] == [1, 0.5]
    # Training never stops before its last step.
    assert schedule.learning_rate(1, 99) == pytest.approx(0.005)
    assert [schedule.cooling(p) for p in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]
