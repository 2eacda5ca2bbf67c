"""Sizes, durations and numbers of parameters as text."""

from __future__ import annotations

import pytest

from idefics_cli.core.units import (
    GIB,
    counted,
    format_duration,
    format_parameters,
    format_size,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 tokens"),
        (1, "1 token"),
        (1.0, "1 token"),
        (2.5, "2.5 tokens"),
        (12_345_678, "12345678 tokens"),
    ],
)
def test_a_count_of_one_has_a_singular(count: float, text: str) -> None:
    assert counted(count, "token") == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 KiB"),
        (12_300, "12 KiB"),
        (9_579_056, "9 MiB"),
        (GIB // 2, "0.5 GiB"),
        (149 * GIB, "149.0 GiB"),
        (-2 * GIB, "-2.0 GiB"),
    ],
)
def test_a_size_has_the_largest_unit_that_fits(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3570, "1 h 0 min"),
        (34_980, "9 h 43 min"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(507_000_000, "507 M"), (8_400_000_000, "8.4 B"), (1_000_000_000, "1.0 B")]
)
def test_parameters_are_counted_in_millions_or_billions(count: int, text: str) -> None:
    assert format_parameters(count) == text
