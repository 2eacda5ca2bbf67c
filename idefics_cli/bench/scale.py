"""The scenario `scale`: what the run itself costs, with stand-ins for models, as workers are added.

It compares this tool with its goals and not with plain transformers, which has no workers.
"""

from __future__ import annotations

from collections.abc import Iterator

from idefics_cli.bench.agreement import Agreement
from idefics_cli.bench.measure import Series, Watch
from idefics_cli.bench.report import ReportRow
from idefics_cli.bench.stage import Stage
from idefics_cli.bench.stand_ins import ANSWER_SECONDS

GOAL_MICROSECONDS = 100.0
GOAL_BYTES = 600.0
_BY_NOTHING = Agreement(True, 1.0, 0, None, None, "no answers are compared")


def scale(stage: Stage) -> Iterator[ReportRow]:
    """Measure the memory of a picture, and the rate of workers and the cost of each picture."""
    quick, world = stage.choices.quick, stage.world
    world.say("scale: memory")
    watch = Watch(world.instruments)
    with watch.watching():
        size = world.measure_bytes(20_000 if quick else 200_000, stage.studio.folder)
    compares = "memory of the run for each picture of a long list, against the goal"
    yield _row("memory of a picture", compares, "bytes", watch, [size], [GOAL_BYTES])
    pictures, rounds = (100, 1) if quick else (400, 2)
    for count in (2,) if quick else (2, 8):
        alone, together, costs = [], [], []
        watch = Watch(world.instruments)
        with watch.watching():
            for number in range(rounds):
                world.say(f"scale: {count} workers, round {number + 1} of {rounds}")
                one = world.run_workers(1, pictures, stage.studio.folder)
                several = world.run_workers(count, pictures, stage.studio.folder)
                alone.append(one.rate * count)
                together.append(several.rate)
                costs.append(several.driver_seconds * 1e6)
        compares = f"{count} stand-ins of {ANSWER_SECONDS * 1000:.0f} ms a picture, against "
        yield _row(
            f"{count} workers", f"{compares}{count} times one", "pictures/s", watch, together, alone
        )
        compares = "processor time of the run for each picture, its row and its journal"
        goals = [GOAL_MICROSECONDS] * rounds
        name = f"cost of a picture, {count} workers"
        yield _row(name, f"{compares}, against the goal", "us", watch, costs, goals)


def _row(
    name: str, compares: str, unit: str, watch: Watch, ours: list[float], others: list[float]
) -> ReportRow:
    return ReportRow(
        scenario="scale",
        name=name,
        compares=compares,
        unit=unit,
        more_is_better=unit == "pictures/s",
        ours=Series(tuple(ours)),
        plain=Series(tuple(others)),
        agreement=_BY_NOTHING,
        foreign_cores=watch.foreign_cores,
    )
