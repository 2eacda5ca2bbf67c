"""The scenario `tune`: training by both sides, in processes of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.bench.cold_start.processes import Side
from idefics_cli.bench.measure import Pace
from idefics_cli.bench.pictures import Studio
from idefics_cli.bench.report import Report
from idefics_cli.bench.run import run
from idefics_cli.bench.tuning.order import CaptionPair, StepReport, TuneOrder
from idefics_cli.bench.tuning.process import open_trainer
from idefics_cli.bench.tuning.sides import OurTraining, PlainTraining
from idefics_cli.cli.commands.bench import choices
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import LoadSpec
from tests.support import commands, tiny
from tests.support.bench import QUICK, SPEC, Stand
from tests.support.training import FAMILY_OF

ANSWERS = ("A red circle.", "Two cats, one dog.", "No.")


# Both sides


# PEFT 0.21 asks transformers 5.23 by the old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["idefics", "idefics2", "idefics3", "smolvlm2"])
def test_both_sides_have_the_same_losses_step_by_step(
    kind: str, checkpointing: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tiny.make(folder, kind)
    spec = LoadSpec(str(folder), FAMILY_OF.get(kind, kind), name=kind, attention="eager")
    order = an_order(spec, tmp_path, checkpointing=checkpointing)
    ours, plain = OurTraining(order), PlainTraining(order)
    first = 0.0
    for number in (0, 1, 0, 1):
        (loss, labelled), (expected, expected_labelled) = ours.step(number), plain.step(number)
        assert labelled == expected_labelled
        assert loss == pytest.approx(expected, rel=1e-4)
        first = first or loss
    assert loss < first


def an_order(spec: LoadSpec, folder: Path, *, checkpointing: bool = False) -> TuneOrder:
    studio = Studio(folder)
    steps = tuple(
        tuple(CaptionPair(studio.draw((60, 40)), "What is it?", answer) for answer in ANSWERS)
        for _ in range(2)
    )
    return TuneOrder("ours", spec, "float32", Path(spec.repo), steps, checkpointing, folder)


def test_the_built_in_model_is_trained_by_both_sides_with_the_same_losses() -> None:
    ran = commands.run(
        "bench", "tune", "-m", "demo", "--rounds", "1", "--threads", "1", "--json"
    )  # fmt: skip
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    rows = {row["name"]: row for row in record["rows"]}
    assert list(rows) == ["first epoch", "second epoch, features kept", "peak memory"]
    for row in rows.values():
        assert row["agreement"]["equal"] == 1.0
        assert (row["agreement"]["answers"], row["agreement"]["tolerance"]) == (3, 1e-3)
        assert row["ours"]["median"] > 0
        assert row["plain"]["median"] > 0
    # Both processes have at least Python, torch and transformers in memory.
    assert all(rows["peak memory"][side]["median"] > 0.2 for side in ("ours", "plain"))


# The scenario


def reports(*seconds: float, loss: float = 2.0, labelled: int = 30) -> list[StepReport]:
    return [
        StepReport(each, loss, labelled, (number + 1) * 10**9)
        for number, each in enumerate(seconds)
    ]


OURS = reports(9.0, 2.0, 4.0, 0.5, 1.0)
PLAIN = reports(9.0, 4.0, 4.0, 4.0, 4.0)


def measured(
    ours: list[StepReport], plain: list[StepReport], spec: LoadSpec = SPEC
) -> tuple[Report, Stand]:
    trainers: dict[Side, list[StepReport]] = {"ours": ours, "plain": plain}
    stand, report = Stand(spec=spec, trainers=trainers), Report()
    run(["tune"], stand.world, replace(QUICK, pace=Pace(2, 1e9), train_rows=4), report)
    assert not report.failures, report.failures
    return report, stand


def test_the_rows_of_each_epoch_are_counted_apart_and_the_warm_up_is_not() -> None:
    report, stand = measured(OURS, PLAIN)
    first, later, memory = report.rows
    assert (first.ours.values, first.plain.values) == ((2.0, 1.0), (1.0, 1.0))
    assert (later.ours.values, later.plain.values) == ((8.0, 4.0), (1.0, 1.0))
    assert (first.unit, later.ratio, memory.unit) == ("rows/s", 6.0, "GB")
    assert memory.ours.values == (5.0,)
    assert not report.disagreements
    assert stand.trained == [
        ("plain", 0), ("ours", 0),
        ("plain", 1), ("ours", 1), ("ours", 2), ("plain", 2),
        ("plain", 1), ("ours", 1), ("ours", 2), ("plain", 2),
    ]  # fmt: skip


def test_both_sides_get_the_same_rows_and_no_picture_twice() -> None:
    _, stand = measured(OURS, PLAIN)
    ours, plain = stand.tune_orders
    assert plain == replace(ours, side="plain")
    pictures = [pair.picture for step in ours.steps for pair in step]
    assert len(set(pictures)) == len(pictures) == 3 * 4


@pytest.mark.parametrize(
    ("loss", "labelled", "spec", "agrees"),
    [
        (2.001, 30, SPEC, True),
        (2.003, 30, SPEC, False),
        (2.05, 30, replace(SPEC, quantization="4bit"), True),
        (2.0, 29, SPEC, False),
        (float("nan"), 30, SPEC, False),
    ],
)
def test_losses_must_be_equal_within_the_tolerance(
    loss: float, labelled: int, spec: LoadSpec, agrees: bool
) -> None:
    other = reports(1.0, loss=loss, labelled=labelled)
    report, _ = measured(other, reports(1.0), spec)
    assert {row.agreement.agrees for row in report.rows} == {agrees}
    assert "labelled tokens, at most" in report.rows[0].agreement.text


def test_a_base_model_is_left_out() -> None:
    report, stand = measured(OURS, PLAIN, replace(SPEC, chats=False))
    assert [(s.scenario, s.is_failure) for s in report.skipped] == [("tune", False)]
    assert not stand.tune_orders


# Its processes

CHILD = """
import json, pickle, sys
order = pickle.load(sys.stdin.buffer)
print("{}", flush=True)
for line in sys.stdin.buffer:
    if line == b"9\\n":
        raise ValueError("no step 9")
    print(json.dumps(dict(seconds=1, loss=float(line), labelled=2, peak_bytes=3)), flush=True)
"""


def test_a_process_does_the_steps_that_it_is_told_to(tmp_path: Path) -> None:
    with open_trainer(an_order(SPEC, tmp_path), child=CHILD) as trainer:
        assert trainer.step(4) == StepReport(1, 4.0, 2, 3)
        assert trainer.step(0) == StepReport(1, 0.0, 2, 3)


@pytest.mark.parametrize("child", [CHILD, "raise ValueError('no step 9')"])
def test_a_process_that_fails_gives_its_last_line(child: str, tmp_path: Path) -> None:
    message = r"^a process of the benchmark failed \(tune ours\): ValueError: no step 9$"
    with (
        pytest.raises(IdeficsError, match=message),
        open_trainer(an_order(SPEC, tmp_path), child=child) as trainer,
    ):
        trainer.step(9)


def test_a_run_without_names_leaves_tune_out_if_its_extra_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def names() -> tuple[str, ...]:
        return choices.parse(
            [], weights=None, batch_sizes=None, contexts=None, new_tokens=None, rounds=None,
            seconds=None, plain_quantization=None, quick=False,
        ).names  # fmt: skip

    assert "tune" in names()
    monkeypatch.setattr(choices, "find_spec", lambda name: None)
    assert "tune" not in names()
    assert "load" in names()
