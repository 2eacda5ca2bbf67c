"""`idefics bench`: the harness with fake clocks and contenders, and one run with real ones."""

from __future__ import annotations

import gc
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.bench import random_model
from idefics_cli.bench.agreement import TOLERANCES, Agreement, compare, tolerance
from idefics_cli.bench.contenders import Ours
from idefics_cli.bench.measure import (
    Duel,
    Instruments,
    Measurement,
    Pace,
    Round,
    Series,
    SystemLoad,
    duel,
)
from idefics_cli.bench.pictures import Studio
from idefics_cli.bench.report import Report, ReportRow, Skipped
from idefics_cli.bench.run import SCENARIOS, run
from idefics_cli.bench.shapes import SHAPES
from idefics_cli.bench.stage import CaptionTask, Choices, Prompts, Stage
from idefics_cli.core.errors import IdeficsError, MemoryLimitError
from idefics_cli.core.types import GenerationRequest, LoadSpec, Message, Quantization
from idefics_cli.ui.terminal.console import Console
from idefics_cli.ui.views.bench import render_report, show_report, times, value
from idefics_cli.ui.views.bench_plot import draw_plot
from tests.support import commands
from tests.support.bench import QUICK, SPEC, FakeContender, FakeLoad, Stand, TimedEngine, words
from tests.support.commands import Stream
from tests.support.fakes import FakeClock, FakeEngine

SAME = Agreement(True, 1.0, 2, None, None, "all tokens equal in 2 answers")


def ask(text: str) -> GenerationRequest:
    return GenerationRequest((Message("user", (text,)),))


def fight(
    rounds: int = 3,
    *,
    ours: Sequence[float] = (1.0,),
    plain: Sequence[float] = (2.0,),
    clock: FakeClock | None = None,
    seconds: float = 1e9,
    foreign: float = 0.0,
    readings: Iterator[float] | None = None,
) -> tuple[Duel, list[tuple[str, str]]]:
    log: list[tuple[str, str]] = []
    instruments = Instruments(
        clock or FakeClock(),
        FakeLoad(foreign),
        None if readings is None else lambda: next(readings),
    )
    fought = duel(
        lambda number: [ask(f"round {number}")],
        FakeContender("ours", log, seconds=ours),
        FakeContender("plain", log, seconds=plain),
        pace=Pace(rounds, seconds),
        instruments=instruments,
    )
    return fought, log


# Measuring


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
    fought, _ = fight(2, ours=(99.0, 1.0, 2.0))
    assert [r.ours.seconds for r in fought.rounds] == [1.0, 2.0]
    assert fought.warm_up.ours.seconds == 99.0
    assert len(fought.all_rounds) == 3


def test_no_round_begins_after_the_time_is_up_but_one_is_always_made() -> None:
    assert len(fight(9, seconds=0.0)[0].rounds) == 1
    # The clock moves by 1 with each look: one at the beginning and one after each round.
    assert len(fight(9, seconds=4.0)[0].rounds) == 4


def test_garbage_is_collected_before_a_round_and_again_after_all() -> None:
    assert gc.isenabled()
    fight(1)
    assert gc.isenabled()


def test_the_median_and_the_least_are_of_all_rounds() -> None:
    series = Series((3.0, 1.0, 10.0, 2.0))
    assert (series.median, series.least, series.most) == (2.5, 1.0, 10.0)


def test_foreign_load_is_what_others_used_by_the_wall_clock() -> None:
    fought, _ = fight(1, foreign=3.0, clock=FakeClock(2.0))
    # The clock is looked at before, for the pace twice, and after: 6 seconds pass.
    assert fought.foreign_cores == pytest.approx(3.0 / 6.0)


def test_the_load_is_read_from_the_first_line_of_proc_stat(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 9999 888 1 2 3 0 0\ncpu0 1 1 1 1\n")
    import os

    busy = SystemLoad(tmp_path).busy_seconds()
    assert busy == pytest.approx(156 / os.sysconf("SC_CLK_TCK"))
    assert SystemLoad(tmp_path / "none").busy_seconds() is None


def test_our_own_load_grows_with_our_work() -> None:
    load = SystemLoad()
    before = load.own_seconds()
    while load.own_seconds() == before:
        math.factorial(2000)
    assert load.own_seconds() > before


# Agreement


def rounds_of(*pairs: tuple[tuple[int, ...], tuple[int, ...]]) -> list[Round]:
    def outcome(tokens: tuple[int, ...]) -> Measurement:
        return Measurement((tokens,), ("",), 1.0, 0.5)

    return [Round((ask("x"),), outcome(ours), outcome(plain)) for ours, plain in pairs]


def test_equal_tokens_agree_and_nobody_is_asked_about_them() -> None:
    def gap(request: GenerationRequest, tokens: tuple[int, ...]) -> float:
        raise AssertionError("asked")

    found = compare(rounds_of(((1, 2), (1, 2)), ((3,), (3,))), allowed=None, gap=gap)
    assert (found.agrees, found.equal, found.answers, found.gap) == (True, 1.0, 2, None)


@pytest.mark.parametrize(
    ("allowed", "gap", "agrees"),
    [(None, 0.0, False), (0.25, 0.25, True), (0.25, 0.26, False), (0.25, math.nan, False)],
)
def test_other_tokens_agree_only_within_the_tolerance(
    allowed: float | None, gap: float, agrees: bool
) -> None:
    found = compare(
        rounds_of(((1, 2, 3), (1, 9, 3, 4))), allowed=allowed, gap=lambda request, tokens: gap
    )
    assert (found.agrees, found.equal) == (agrees, 0.5)


def test_the_worst_answer_decides() -> None:
    distances = {(1,): 0.1, (2,): 0.9}
    found = compare(
        rounds_of(((1,), (0,)), ((2,), (0,))), allowed=0.5, gap=lambda _, t: distances[t]
    )
    assert (found.agrees, found.gap) == (False, 0.9)


def test_float32_tolerates_nothing_and_every_other_format_something() -> None:
    assert tolerance(SPEC) is None
    assert tolerance(replace(SPEC, dtype="bfloat16")) == TOLERANCES["bfloat16"]
    assert tolerance(replace(SPEC, quantization="4bit")) == TOLERANCES["quantized"]


# Ours


def test_ours_is_timed_from_outside_and_its_slowest_row_counts() -> None:
    outcome = Ours(TimedEngine(), FakeClock(5.0)).answer([ask("x"), ask("y")])
    assert (outcome.seconds, outcome.decode_seconds) == (5.0, pytest.approx(0.4))
    assert (outcome.tokens, outcome.texts) == (((1, 2), (1, 2)), ("a b", "a b"))
    assert outcome.steps == 2


def test_an_engine_that_says_more_seconds_than_passed_is_not_believed() -> None:
    with pytest.raises(RuntimeError, match=r"and says 0\.300 s"):
        Ours(TimedEngine(), FakeClock(0.1)).answer([ask("x")])


# Scenarios


def test_no_two_prompts_begin_alike_and_all_have_the_length_asked_for() -> None:
    prompts = Prompts(SPEC, words)
    made = [prompts.text(100, new_tokens=4) for _ in range(3)]
    assert len({request.messages[0].text[:5] for request in made}) == 3
    assert {words(request) for request in made} == {100}


def test_a_base_model_completes(tmp_path: Path) -> None:
    prompts = Prompts(replace(SPEC, chats=False), words)
    assert prompts.text(10, new_tokens=1).mode == "complete"


def test_no_two_pictures_are_alike(tmp_path: Path) -> None:
    studio = Studio(tmp_path)
    pictures = [studio.draw((40, 30)).read_bytes() for _ in range(3)]
    assert len(set(pictures)) == 3


def measured(
    *names: str, stand: Stand | None = None, choices: Choices = QUICK
) -> tuple[Report, Stand]:
    stand, report = stand or Stand(), Report()
    run(names, stand.world, choices, report)
    return report, stand


def test_every_scenario_in_one_process_gives_rows_of_both_sides() -> None:
    report, _ = measured("vision", "prefill", "decode", "chat", "caption")
    assert {row.scenario for row in report.rows} == {
        "vision", "prefill", "decode", "chat", "caption",
    }  # fmt: skip
    assert all(len(row.ours.values) == len(row.plain.values) == 2 for row in report.rows)
    assert not report.disagreements
    assert not report.failures


def test_what_is_longer_than_the_context_is_left_out_and_told() -> None:
    report, _ = measured("decode")
    assert [row.name for row in report.rows] == ["batch 1, context 100", "batch 4, context 100"]
    assert {(s.name, s.why, s.is_failure) for s in report.skipped} == {
        ("batch 1, context 2000", "the model takes 1,000 tokens", False),
        ("batch 4, context 2000", "the model takes 1,000 tokens", False),
    }


def test_decode_counts_the_tokens_after_the_first_of_all_rows() -> None:
    report, _ = measured("decode")
    one, four = report.rows
    # Plain: 2 tokens a row, of 8 seconds the second half is decoding.
    assert one.plain.values == (0.25, 0.25)
    assert four.plain.values == (1.0, 1.0)
    assert one.ours.median == pytest.approx(1 / 0.3)
    assert one.ratio == pytest.approx(1 / 0.3 / 0.25)


@pytest.mark.parametrize(("device", "first"), [("cpu", 100), ("cuda:0", 400)])
def test_decoding_is_warmed_up_with_a_short_prompt_where_its_length_does_not_matter(
    device: str, first: int
) -> None:
    choices = replace(QUICK, batch_sizes=(1,), contexts=(400,))
    _, stand = measured("decode", stand=Stand(spec=replace(SPEC, device=device)), choices=choices)
    lengths = [len(text.split()) for name, text in stand.log if name == "plain"]
    assert lengths == pytest.approx([first, 400, 400], abs=3)


def test_an_answer_of_one_token_has_no_decode_rate() -> None:
    report, _ = measured("decode", stand=Stand(tokens=(1,)))
    assert not report.rows
    assert report.skipped[0].why == "the model ended its answer at once"


def test_vision_is_measured_with_and_without_tiles_and_each_is_loaded() -> None:
    report, stand = measured("vision", "prefill")
    names = [row.name for row in report.rows if row.scenario == "vision"]
    assert names == [
        "980x980, whole",
        "980x653, whole",
        "640x480, whole",
        "8 of mixed shapes, whole",
        "980x653, split",
    ]
    assert [spec.splitting for spec in stand.specs] == [False, True, False]


@pytest.mark.parametrize(
    ("ours", "plain", "allowed"),
    [
        (SPEC, None, None),
        (replace(SPEC, quantization="4bit"), None, "quantized"),
        (replace(SPEC, quantization="4bit", format_4bit="int4"), None, "other format"),
        (replace(SPEC, quantization="4bit"), "none", "other format"),
        (replace(SPEC, quantization="4bit"), "4bit", "quantized"),
    ],
)
def test_plain_transformers_may_have_weights_of_another_format(
    ours: LoadSpec, plain: Quantization | None, allowed: str | None
) -> None:
    choices = replace(QUICK, plain_quantization=plain)
    report, stand = measured("prefill", stand=Stand(spec=ours), choices=choices)
    assert stand.specs == [ours]
    assert stand.plain_specs == [replace(ours, quantization=plain or ours.quantization)]
    tolerances = {row.agreement.tolerance for row in report.rows if row.agreement}
    assert tolerances == {TOLERANCES[allowed] if allowed else None}


def test_a_second_turn_holds_the_first_and_the_answer_to_it() -> None:
    report, stand = measured("chat")
    assert [row.name for row in report.rows] == [
        "second turn, first token",
        "second turn, whole answer",
    ]
    requests = [request for engine in stand.engines for request in engine.prepared]
    turns = [[m.role for m in request.messages] for request in requests]
    assert turns.count(["user", "assistant", "user"]) == 3
    assert report.rows[0].ours.values[0] < report.rows[1].ours.values[0]


def test_a_base_model_has_no_second_turn() -> None:
    report, _ = measured("chat", stand=Stand(spec=replace(SPEC, chats=False)))
    assert [s.why for s in report.skipped] == ["a base model does not chat"]


def test_captions_are_compared_with_the_best_batch_size_of_the_plain_loop() -> None:
    report, stand = measured("caption")
    (row,) = report.rows
    # An answer takes 8 seconds, whatever the batch, and a look at the clock 2: five answers of
    # one picture take 42, one of four and one of one 18.
    assert row.plain.values == (pytest.approx(5 / 18),) * 2
    assert row.notes[0].endswith("0.119 with 1, 0.278 with 4")
    # A fresh engine for every round: nothing is remembered of a picture.
    assert len(stand.engines) == 2
    assert all(engine.is_closed for engine in stand.engines)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        # The fake takes as long for a batch as for one picture: 10, 18 and 42 seconds.
        ((1, 4, 16), "1 not tried, 0.278 with 4, 0.5 with 5"),
        ((1, 3, 4), "0.119 with 1, 0.278 with 3, 0.278 with 4"),
    ],
)
def test_smaller_batches_are_not_tried_once_one_was_clearly_slower(
    sizes: tuple[int, ...], told: str
) -> None:
    report, _ = measured("caption", choices=replace(QUICK, batch_sizes=sizes))
    (row,) = report.rows
    assert row.notes[0].endswith(told)
    assert len(row.plain.values) == 2


@pytest.mark.parametrize("texts", ["y", ""])
def test_a_caption_that_is_not_what_was_generated_is_a_disagreement(texts: str) -> None:
    report, _ = measured("caption", stand=Stand(texts=texts))
    (row,) = report.disagreements
    assert row.agreement.text == "5 captions missing or not what was generated, as of 0.png"


def test_other_tokens_of_the_plain_side_are_a_disagreement_in_every_scenario() -> None:
    report, _ = measured(
        "vision", "prefill", "decode", "chat", "caption", stand=Stand(tokens=(1, 3))
    )
    assert report.rows
    assert report.disagreements == report.rows


def test_an_error_of_one_scenario_is_told_and_the_others_go_on() -> None:
    def broken(stage: Stage) -> Iterator[ReportRow | Skipped]:
        raise MemoryLimitError("out of memory", hint="a smaller batch")

    report, stand = Report(), Stand()
    run(
        ["broken", "prefill"],
        stand.world,
        QUICK,
        report,
        table={"broken": broken, "prefill": SCENARIOS["prefill"]},
    )
    assert [row.scenario for row in report.rows] == ["prefill"]
    assert [(s.scenario, s.why) for s in report.failures] == [
        ("broken", "out of memory (a smaller batch)")
    ]


def test_ctrl_c_leaves_what_was_measured() -> None:
    def interrupted(stage: Stage) -> Iterator[ReportRow | Skipped]:
        yield a_row()
        raise KeyboardInterrupt

    report = Report()
    run(["x"], Stand().world, QUICK, report, table={"x": interrupted})
    assert (len(report.rows), report.is_interrupted) == (1, True)


# The report


def a_row(
    *,
    ours: Sequence[float] = (1.0, 2.0, 3.0),
    plain: Sequence[float] = (4.0, 4.0, 6.0),
    unit: str = "s",
    more_is_better: bool = False,
    agreement: Agreement = SAME,
    foreign: float | None = 0.0,
    reference: Sequence[float] = (10.0, 11.0),
) -> ReportRow:
    return ReportRow(
        "chat",
        "second turn",
        "a turn",
        unit,
        more_is_better,
        Series(tuple(ours)),
        Series(tuple(plain)),
        agreement,
        foreign,
        Series(tuple(reference)),
        ("12 prompt tokens", "something to know"),
    )


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
        "                     ours  transformers    ratio    rounds from … to  answers",
        "chat: second turn  2.00 s        4.00 s    2.00x  2.00x … 4.00x, n=3  equal",
        "chat: second turn  2.00 s        4.00 s  2.00x *  2.00x … 4.00x, n=3  DIFFER",
        "medians; a ratio above 1 means that ours is faster, or needs less memory",
        "memory bandwidth meanwhile: 10.0 to 11.0 GB/s",
        "gap: how much worse than the best a token of ours is in transformers' own logits, in "
        "standard deviations of these (a random token: about 4)",
        "  chat: second turn: something to know",
        "  chat: second turn: something to know",
        "* 1 of 2 figures were disturbed, so take them with care; the most, chat: second turn: "
        "other programs kept 1.5 cores busy",
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


# End to end


@pytest.mark.parametrize("name", ["smolvlm-256m", "idefics2-8b"])
def test_random_weights_that_were_kept_are_used_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    # Gigabytes of weights are not what this is about.
    monkeypatch.setattr(random_model, "_shards", lambda names, pool: iter(()))
    made = random_model.make(folder, SHAPES[name], dtype="float32", layers=1)
    monkeypatch.setattr(random_model, "_write_weights", None)
    assert random_model.make(folder, SHAPES[name], dtype="float32", layers=1) == made
    with pytest.raises(IdeficsError, match="something else"):
        random_model.make(folder, SHAPES[name], dtype="bfloat16", layers=1)


def test_bench_compares_both_sides_with_the_built_in_model(tmp_path: Path) -> None:
    """The whole way, fresh processes left out: they take seconds each."""
    arguments = "decode chat vision caption -m demo --quick --rounds 1 --contexts 60 --count 2"
    ran = commands.run(
        "bench",
        *arguments.split(),
        *("--seconds", "0.1", "--threads", "1", "--json"),
        *("--output", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")),
    )
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    assert {row["scenario"] for row in record["rows"]} == {"vision", "decode", "chat", "caption"}
    assert all(row["agreement"]["equal"] == 1.0 for row in record["rows"])
    assert all(row["ours"]["median"] > 0 and row["plain"]["median"] > 0 for row in record["rows"])
    assert (record["skipped"], record["agrees"], record["dtype"]) == ([], True, "float32")
    assert json.loads((tmp_path / "out.json").read_text()) == record
    assert Image.open(tmp_path / "out.png").width == 1200


def test_a_run_in_which_the_answers_differ_ends_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    from idefics_cli.bench.plain import Plain

    answer = Plain.answer

    def other(self: Plain, requests: Sequence[GenerationRequest]) -> Measurement:
        outcome = answer(self, requests)
        return replace(outcome, tokens=tuple((*t[:-1], 5) for t in outcome.tokens))

    monkeypatch.setattr(Plain, "answer", other)
    ran = commands.run(
        "bench", "prefill", "-m", "demo", "--quick", "--rounds", "1", "--contexts", "40",
        "--threads", "1",
    )  # fmt: skip
    assert ran.code == 3
    assert "! prefill: context 40: the answers differ: 0.0% of tokens equal" in ran.out


def test_captions_are_compared_with_the_first_reply_even_if_it_goes_in_circles() -> None:
    from idefics_cli.cli.commands.bench.captions import caption_all

    engine = FakeEngine(lambda request: "a cat and " * 40)
    task = CaptionTask((Path("a.jpg"),), "Describe it.", max_new_tokens=24)
    assert list(caption_all(engine, task)) == [Path("a.jpg")]
    assert [request.sampling.temperature for request in engine.requests] == [0]
