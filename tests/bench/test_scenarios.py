"""Every scenario but those of fresh processes, with fakes on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.bench.agreement import TOLERANCES
from idefics_cli.bench.pictures import Studio
from idefics_cli.bench.report import Report, ReportRow, Skipped
from idefics_cli.bench.run import SCENARIOS, run
from idefics_cli.bench.stage import Choices, Prompts, Stage
from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.core.types import LoadSpec, Quantization
from tests.support.bench import QUICK, SPEC, Stand, a_row, words


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
    report, stand = measured("vision", "prefill", "decode", "chat", "caption")
    assert {row.scenario for row in report.rows} == {
        "vision", "prefill", "decode", "chat", "caption",
    }  # fmt: skip
    assert all(len(row.ours.values) == len(row.plain.values) == 2 for row in report.rows)
    assert not report.disagreements
    assert not report.failures
    assert not any(any(side.collected_garbage) for side in stand.plain_sides)


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
    # Plain transformers gives 2 tokens a row in 8 seconds, of which the second half is decoding.
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
    # A batch takes 8 seconds, and a reading of the clock 2: five batches of one picture take 42
    # seconds, a batch of four and one of one 18.
    assert row.plain.values == pytest.approx((5 / 18, 5 / 18))
    assert row.notes[0].endswith("0.119 with 1, 0.278 with 4")
    # Every round has a fresh engine, which has no picture in its cache.
    assert len(stand.engines) == 2
    assert all(engine.is_closed for engine in stand.engines)


def test_a_single_batch_size_of_the_plain_loop_is_not_called_its_best() -> None:
    report, _ = measured("caption", choices=replace(QUICK, batch_sizes=(1,)))
    (row,) = report.rows
    assert row.compares.endswith("transformers in a loop at batch size 1, the only one tried")
    assert row.notes == ("plain transformers tried batch size 1 only, which may not be its best",)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        # The fake takes as long for a batch as for one picture: in all 10, 18 and 42 seconds.
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
