"""The scenario `scale`: what the run itself costs, with stand-ins for models, as workers are added.

It compares this tool with its goals and not with plain transformers, which has no workers.
"""

from __future__ import annotations

from collections.abc import Iterator

from idefics_cli.bench.agreement import Agreement
from idefics_cli.bench.measure import Series, Watch
from idefics_cli.bench.report import ReportRow
from idefics_cli.bench.stage import Stage

# Stand-ins as slow as a model on a GPU, and some that make this process busy. A process that wakes
# for a few records needs more time for each: its code and data have left the cache.
_SLOW_SECONDS, _FAST_SECONDS = 0.02, 0.002
_COSTS = ((4, 2000, _FAST_SECONDS), (8, 400, _SLOW_SECONDS))
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
    rounds = 1 if quick else 2
    for count in (2,) if quick else (2, 8):
        yield _efficiency(stage, count, rounds)
    for count, pictures, seconds in _COSTS:
        yield _cost(stage, count, pictures // 10 if quick else pictures, seconds, rounds)


def _efficiency(stage: Stage, count: int, rounds: int) -> ReportRow:
    """Return the rate of *count* workers, against as many times that of one."""
    pictures, folder = 100 if stage.choices.quick else 400, stage.studio.folder
    alone, together = [], []
    watch = Watch(stage.world.instruments)
    with watch.watching():
        for number in range(rounds):
            stage.world.say(f"scale: {count} workers, round {number + 1} of {rounds}")
            one = stage.world.run_workers(1, pictures, _SLOW_SECONDS, folder)
            several = stage.world.run_workers(count, pictures, _SLOW_SECONDS, folder)
            alone.append(one.rate * count)
            together.append(several.rate)
    compares = f"{count} stand-ins of {_SLOW_SECONDS * 1000:.0f} ms a picture, against "
    return _row(
        f"{count} workers", f"{compares}{count} times one", "pictures/s", watch, together, alone
    )


def _cost(stage: Stage, count: int, pictures: int, seconds: float, rounds: int) -> ReportRow:
    """Return the processor time of the run for each picture, against the goal."""
    watch, costs = Watch(stage.world.instruments), []
    name = f"cost, {seconds * 1000:.0f} ms a picture"
    with watch.watching():
        for number in range(rounds):
            stage.world.say(f"scale: {name}, round {number + 1} of {rounds}")
            figures = stage.world.run_workers(count, pictures, seconds, stage.studio.folder)
            costs.append(figures.driver_seconds * 1e6)
    compares = (
        "processor time of the run for each picture, its row and its journal, "
        f"with {count} stand-ins, against the goal"
    )
    return _row(name, compares, "us", watch, costs, [GOAL_MICROSECONDS] * rounds)


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
