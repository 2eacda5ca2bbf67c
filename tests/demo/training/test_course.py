"""The settings of each step of the built-in model's training."""

from __future__ import annotations

import pytest

from idefics_cli.demo.training.course import Course


def test_the_course_warms_up_and_cools_down() -> None:
    course = Course()
    rates = [course.at(i / 100, 1000).learning_rate for i in range(101)]

    assert course.at(0, 0).learning_rate == pytest.approx(2e-3 / 60)
    assert max(rates) == rates[0] == rates[54] == 2e-3
    assert rates[55:] == sorted(rates[55:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5)
    assert [course.at(p, 0).batch_size for p in (0, 0.2, 0.3, 0.6, 0.9)] == [96, 32, 40, 56, 80]
    assert [course.at(p, 0).is_vision_only for p in (0, 0.09, 0.1, 1)] == [
        True,
        True,
        False,
        False,
    ]
    assert course.at(0.5, 0).auxiliary_weight == 1
    assert course.at(1, 0).auxiliary_weight == pytest.approx(0.3)


def test_a_smaller_batch_changes_all_batches_in_proportion() -> None:
    course = Course().with_batch(8)

    assert [course.at(p, 0).batch_size for p in (0, 0.2, 0.3, 0.6, 0.9)] == [24, 8, 10, 14, 20]
    assert Course().with_batch(None) == Course()
