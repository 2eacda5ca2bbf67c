"""The scenario `tune`: LoRA training by this tool, against PEFT and plain transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from idefics_cli.bench.agreement import Agreement
from idefics_cli.bench.cold_start.processes import Side
from idefics_cli.bench.measure import Series, Watch
from idefics_cli.bench.report import ReportRow, Skipped
from idefics_cli.bench.stage import QUESTION, Stage
from idefics_cli.bench.tuning.order import CaptionPair, StepReport, TuneOrder
from idefics_cli.bench.tuning.process import Trainer
from idefics_cli.core.units import counted

LOSS_TOLERANCES = {"float32": 1e-3}
"""Largest allowed difference of two losses, as a share of the loss, by the dtype of weights."""
_ROUNDED_TOLERANCE = 3e-2
_SIDES: tuple[Side, Side] = ("ours", "plain")
_ANSWERS = (
    "Several circles and squares lie on a background whose colors run into each other.",
    "The picture shows a red circle at the left, and a green square that hides a part of it.",
    "Some blue shapes are in front of a bright background. One of them is cut off by the edge.",
    "A drawing without people: large shapes of one color each, on a background of four colors.",
)


@dataclass(slots=True)
class _Steps:
    """The reports of both sides, with the numbers of the steps in order."""

    numbers: list[int] = field(default_factory=list)
    reports: dict[Side, list[StepReport]] = field(default_factory=lambda: {s: [] for s in _SIDES})

    def rates(self, side: Side, rows: int) -> Series:
        """Return the rows per second of each step."""
        return Series(tuple(rows / report.seconds for report in self.reports[side]))


def tune(stage: Stage) -> Iterator[ReportRow | Skipped]:
    """Measure training in rows per second, with and without kept features, and its peak memory."""
    if not stage.spec.chats:
        yield Skipped("tune", "", "a base model has no chat template to train with")
        return
    order = _order(stage)
    watch = Watch(stage.world.instruments)
    with ExitStack() as stack:
        trainers: dict[Side, Trainer] = {}
        for side in _SIDES:
            stage.world.say(f"tune: loading {side}")
            opened = stage.world.open_trainer(replace(order, side=side))
            trainers[side] = stack.enter_context(opened)
        with watch.watching():
            # The first step is the warm-up. Its losses are compared, but its times do not count.
            warm_up = _run(stage, trainers, [0], "warm-up", watch)
            first = _run(stage, trainers, range(1, len(order.steps)), "first epoch", watch)
            later = _run(stage, trainers, first.numbers, "second epoch", watch)
    yield from _rows(stage, order, watch, (warm_up, first, later))


def _order(stage: Stage) -> TuneOrder:
    """Return the order of our side; that of the other side differs in the side only."""
    from idefics_cli.training.precision import training_spec

    choices = stage.choices
    spec, computed = training_spec(stage.spec, dtype=choices.train_dtype)
    rows = choices.train_rows
    steps = tuple(
        tuple(
            CaptionPair(stage.studio.draw((640, 480)), QUESTION, _ANSWERS[row % len(_ANSWERS)])
            for row in range(rows)
        )
        for _ in range(choices.pace.rounds + 1)
    )
    folder, scratch = stage.world.folder, stage.studio.folder
    return TuneOrder("ours", spec, computed, folder, steps, choices.checkpointing, scratch)


def _run(
    stage: Stage,
    trainers: Mapping[Side, Trainer],
    numbers: Sequence[int],
    name: str,
    watch: Watch,
) -> _Steps:
    """Let both sides do the steps *numbers* in turns, until the time is up."""
    clock, done = stage.world.instruments.clock, _Steps()
    started = clock()
    for place, number in enumerate(numbers):
        stage.world.say(f"tune: {name}, step {place + 1}")
        for side in _SIDES if place % 2 else _SIDES[::-1]:
            done.reports[side].append(trainers[side].step(number))
        done.numbers.append(number)
        watch.measure_reference()
        if clock() - started >= stage.choices.pace.seconds:
            break
    return done


def _rows(
    stage: Stage, order: TuneOrder, watch: Watch, parts: tuple[_Steps, _Steps, _Steps]
) -> Iterator[ReportRow]:
    _, first, later = parts
    rows, agreement = stage.choices.train_rows, _compare(order, parts)
    on = "GPU memory" if order.spec.device.startswith("cuda") else "resident memory"

    def row(
        name: str, compares: str, unit: str, values: Sequence[Series], *notes: str
    ) -> ReportRow:
        ours, plain = values
        more, load = unit == "rows/s", (watch.foreign_cores, watch.reference)
        return ReportRow("tune", name, compares, unit, more, ours, plain, agreement, *load, notes)

    yield row(
        "first epoch",
        "picture files to updated LoRA matrices",
        "rows/s",
        [first.rates(side, rows) for side in _SIDES],
        f"steps of {counted(rows, 'row')}; {agreement.text}",
    )
    yield row(
        "second epoch, features kept",
        "the same rows again; idefics has kept the image features, plain transformers has not",
        "rows/s",
        [later.rates(side, rows) for side in _SIDES],
    )
    yield row(
        "peak memory",
        f"{on} of a process of its own, from its start to the last step",
        "GB",
        [_peak(later.reports[side][-1]) for side in _SIDES],
        *(["activation checkpointing on both sides"] if order.checkpointing else []),
    )


def _peak(report: StepReport) -> Series:
    return Series((report.peak_bytes / 1e9,))


def _compare(order: TuneOrder, parts: Sequence[_Steps]) -> Agreement:
    """Compare the losses of all steps; the updates of each step show in the losses after it."""
    allowed = _ROUNDED_TOLERANCE
    if order.computed == "float32" and order.spec.quantization == "none":
        allowed = LOSS_TOLERANCES["float32"]
    ours, plain = ([r for part in parts for r in part.reports[side]] for side in _SIDES)
    apart = [
        abs(one.loss - other.loss) / abs(other.loss) if one.labelled == other.labelled else 1.0
        for one, other in zip(ours, plain, strict=True)
    ]
    good = sum(each <= allowed for each in apart)  # NaN is not
    tokens = sum(report.labelled for report in ours) // len(ours)
    text = (
        f"loss {ours[0].loss:.4g} to {ours[-1].loss:.4g} (idefics) and {plain[0].loss:.4g} to "
        f"{plain[-1].loss:.4g} in {counted(len(ours), 'step')} of about {tokens} labelled tokens, "
        f"at most {max(apart):.1e} apart ({allowed:g} allowed)"
    )
    return Agreement(good == len(apart), good / len(apart), len(apart), allowed, None, text)
