"""The rows of a report, as text, on a terminal, as JSON and as a plot."""

from __future__ import annotations

import io
import json
import re

import pytest
from PIL import Image

from idefics_cli.bench.agreement import Agreement
from idefics_cli.bench.report import Report, ReportRow, Skipped
from idefics_cli.ui.terminal.console import Console
from idefics_cli.ui.views.bench import render_report, show_report, times, value
from idefics_cli.ui.views.bench_plot import draw_plot
from tests.support.bench import a_row
from tests.support.commands import Stream


def test_a_ratio_above_one_is_better_whatever_the_unit() -> None:
    seconds = a_row()
    assert (seconds.ratio, seconds.best_ratio, seconds.range) == (2.0, 4.0, (2.0, 4.0))
    rates = a_row(ours=(8.0, 9.0), plain=(4.0, 4.0), unit="tokens/s", more_is_better=True)
    assert (rates.ratio, rates.best_ratio, rates.range) == (2.125, 2.25, (2.0, 2.25))


def test_a_busy_machine_and_a_moving_reference_mark_a_row() -> None:
    assert a_row().disturbances == ()
    assert a_row(foreign=None).disturbances == ()
    assert a_row(foreign=0.5).disturbances == ("other programs kept 0.5 cores busy",)
    assert a_row(reference=(10.0, 20.0)).disturbances == (
        "memory bandwidth changed by a factor of 2.0 meanwhile",
    )


DIFFERENT = Agreement(False, 0.5, 2, None, 3.0, "50.0% of tokens equal")


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_figure_is_whole_however_narrow_the_terminal(width: int) -> None:
    out = Stream(terminal=True)
    report = Report(rows=[a_row(foreign=1.5, agreement=DIFFERENT)])
    console = Console(out, out, environ={"TERM": "xterm", "COLUMNS": str(width)})
    show_report(console, report, "demo, float32 on a machine")
    shown = re.sub(r"\x1b\[[\d;]*m", "", out.text())
    assert max(map(len, shown.splitlines())) <= width
    words = " ".join(shown.split())
    for figure in ("second turn", "2.00 s", "4.00 s", "2.00x *", "DIFFER", "1.5 cores busy"):
        assert figure in words


def test_the_table_is_plain_text_with_what_a_reader_must_know() -> None:
    report = Report(
        rows=[a_row(), a_row(foreign=1.5, agreement=DIFFERENT)],
        skipped=[Skipped("start", "", "no script"), Skipped("load", "x", "broken", True)],
        is_interrupted=True,
    )
    assert render_report(report, "demo on a \x1b[31mmachine").splitlines() == [
        "demo on a \u241b[31mmachine",
        "                   idefics  transformers    ratio    rounds from … to  answers",
        "chat: second turn   2.00 s        4.00 s    2.00x  2.00x … 4.00x, n=3  equal",
        "chat: second turn   2.00 s        4.00 s  2.00x *  2.00x … 4.00x, n=3  DIFFER",
        "medians; a ratio above 1 means that idefics is faster, or needs less memory",
        "memory bandwidth meanwhile: 10.0 to 11.0 GB/s",
        "gap: how much worse than the best a token of idefics is in transformers' own logits, in "
        "standard deviations of these (a random token: about 4)",
        "  chat: second turn: something to know",
        "  chat: second turn: something to know",
        "* disturbed: 1 of 2 figures; repeat the benchmark on a quiet machine. The worst is "
        "chat: second turn: other programs kept 1.5 cores busy",
        "! start: left out: no script",
        "! load: x: failed: broken",
        "! chat: second turn: the answers differ: 50.0% of tokens equal",
        "! interrupted: only what was measured until then",
    ]


@pytest.mark.parametrize(
    ("number", "unit", "shown"),
    [
        (0.01234, "s", "12.3 ms"),
        (12.34, "s", "12.3 s"),
        (0.5, "tokens/s", "0.500 tokens/s"),
        (1234.5, "tokens/s", "1,234 tokens/s"),
        (0.0, "GB", "0 GB"),
    ],
)
def test_values_have_three_digits_and_a_unit(number: float, unit: str, shown: str) -> None:
    assert value(number, unit) == shown


def test_ratios_have_two_places_and_large_ones_fewer() -> None:
    assert (times(2.345), times(14.26), times(0.5)) == ("2.35x", "14.3x", "0.50x")


def test_the_record_says_everything_that_the_table_rests_on() -> None:
    report = Report({"model": "demo"}, rows=[a_row(agreement=DIFFERENT)])
    record = json.loads(json.dumps(report.record()))
    assert (record["version"], record["model"], record["agrees"]) == (1, "demo", False)
    (row,) = record["rows"]
    assert row["ours"] == {"median": 2.0, "best": 1.0, "values": [1.0, 2.0, 3.0]}
    assert row["ratio_range"] == [2.0, 4.0]
    assert row["agreement"]["text"] == "50.0% of tokens equal"
    assert row["reference_gb_per_second"] == [10.0, 11.0]
    assert set(row) == {
        "scenario", "name", "compares", "unit", "more_is_better", "ours", "plain", "ratio",
        "best_ratio", "ratio_range", "agreement", "foreign_cores", "reference_gb_per_second",
        "disturbances", "notes",
    }  # fmt: skip


def test_the_plot_has_a_bar_for_each_row_and_red_for_answers_that_differ() -> None:
    def colors(*rows: ReportRow) -> tuple[int, set[tuple[int, ...]]]:
        image = Image.open(io.BytesIO(draw_plot(Report(rows=list(rows)), "title")))
        pixels = image.convert("RGB").getcolors(1 << 20)
        assert pixels
        return image.height, {color for _, color in pixels if isinstance(color, tuple)}

    red, green = (0xC0, 0x39, 0x2B), (0x2A, 0x7F, 0x62)
    one, seen = colors(a_row())
    assert green in seen
    assert red not in seen
    two, seen = colors(a_row(agreement=DIFFERENT), a_row())
    assert {green, red} <= seen
    assert two > one
