"""Our side is timed from outside."""

from __future__ import annotations

import pytest

from idefics_cli.bench.contenders import Ours
from tests.support.bench import TimedEngine, ask
from tests.support.fakes import FakeClock


def test_ours_is_timed_from_outside_and_its_slowest_row_counts() -> None:
    outcome = Ours(TimedEngine(), FakeClock(5.0)).answer([ask("x"), ask("y")])
    assert (outcome.seconds, outcome.decode_seconds) == pytest.approx((5.0, 0.4))
    assert (outcome.tokens, outcome.texts) == (((1, 2), (1, 2)), ("a b", "a b"))
    assert outcome.steps == 2


def test_an_engine_that_reports_more_seconds_than_passed_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"and reports 0\.300 s"):
        Ours(TimedEngine(), FakeClock(0.1)).answer([ask("x")])
