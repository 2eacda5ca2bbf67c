"""A run: one scenario after the other, and a report that is valid at every moment."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from idefics_cli.bench import captions, scale, scenarios, serve, startup, tune
from idefics_cli.bench.pictures import Studio
from idefics_cli.bench.report import Report, ReportRow, Skipped
from idefics_cli.bench.stage import Choices, Stage, World
from idefics_cli.core.errors import IdeficsError

Scenario = Callable[[Stage], Iterator[ReportRow | Skipped]]

SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        "scale": scale.scale,
        "start": startup.start,
        "load": startup.load,
        "tune": tune.tune,
        "serve": serve.serve,
        "vision": scenarios.vision,
        "prefill": scenarios.prefill,
        "decode": scenarios.decode,
        "chat": scenarios.chat,
        "caption": captions.caption,
    }
)
"""Every scenario by its name.

Scenarios with fresh processes come first, while this process has no model in memory.
"""


def run(
    names: Sequence[str],
    world: World,
    choices: Choices,
    report: Report,
    *,
    table: Mapping[str, Scenario] = SCENARIOS,
    on_result: Callable[[ReportRow | Skipped], None] = lambda result: None,
) -> None:
    """Measure the scenarios *names* and add their figures to *report*.

    After Ctrl-C, *report* keeps the rows that it has.

    Args:
        names: Keys of *table* in any order. Their order in the table counts.
        world: Connections to the outside.
        choices: Choices of the user.
        report: The report, which gets each row as soon as it is measured.
        table: Scenarios by name.
        on_result: Called with every row, and with every figure that is left out.
    """
    with tempfile.TemporaryDirectory(prefix="idefics-bench-") as folder:
        stage = Stage(world, choices, Studio(Path(folder)))
        try:
            with stage.opened():
                for name in (name for name in table if name in names):
                    _run_one(name, table[name], stage, report, on_result)
        except KeyboardInterrupt:
            report.is_interrupted = True


def _run_one(
    name: str,
    scenario: Scenario,
    stage: Stage,
    report: Report,
    on_result: Callable[[ReportRow | Skipped], None],
) -> None:
    try:
        for result in scenario(stage):
            _add_result(result, report, on_result)
    except IdeficsError as error:
        why = f"{error}" + (f" ({error.hint})" if error.hint else "")
        _add_result(Skipped(name, "", why, is_failure=True), report, on_result)
        stage.use(stage.world.spec)


def _add_result(
    result: ReportRow | Skipped, report: Report, on_result: Callable[[ReportRow | Skipped], None]
) -> None:
    if isinstance(result, ReportRow):
        report.rows.append(result)
    else:
        report.skipped.append(result)
    on_result(result)
