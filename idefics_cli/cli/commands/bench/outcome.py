"""The output of a finished benchmark: a table or JSON, files, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from idefics_cli.cli.commands.bench.choices import WITHOUT_MODEL, Asked
from idefics_cli.cli.commands.bench.planned import BenchPlan
from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_PARTIAL, IdeficsError
from idefics_cli.core.units import counted

if TYPE_CHECKING:
    from idefics_cli.bench.report import Report


def deliver(
    invocation: Invocation,
    report: Report,
    asked: Asked,
    plan: BenchPlan,
    report_file: str | None,
    plot: str | None,
) -> int:
    """Show and store *report*; return the exit code."""
    from idefics_cli.ui.views.bench import show_report

    console = invocation.console
    title = _title(plan, asked)
    if invocation.settings.json:
        console.json(report.record())
    else:
        show_report(console, report, title)
    if report_file is not None:
        text = json.dumps(report.record(), indent=1, ensure_ascii=False) + "\n"
        _write(Path(report_file), text.encode())
    if plot is not None and report.rows:
        from idefics_cli.ui.views.bench_plot import draw_plot

        _write(Path(plot), draw_plot(report, title))
    if report.is_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_PARTIAL if report.disagreements or report.failures else EXIT_DONE


def _title(plan: BenchPlan, asked: Asked) -> str:
    if set(asked.names) <= WITHOUT_MODEL:
        return f"{plan.title}, on {plan.machine.cpu_name}"
    spec = plan.plan.spec
    own, plain = (
        spec.dtype if method == "none" else f"{method} and {spec.dtype}"
        for method in (spec.quantization, asked.plain_quantization or spec.quantization)
    )
    if spec.quantization == "4bit":
        own = own.replace("4bit", f"4bit ({spec.format_4bit})")
        plain = plain.replace("4bit", "4bit (nf4)")
    what = own if own == plain else f"{own} against {plain}"
    threads = f", {counted(spec.threads, 'thread')}" if spec.threads else ""
    gpu = next((g.name for g in plan.machine.gpus if spec.device.startswith("cuda")), None)
    return f"{plan.title}, {what} on {gpu or plan.machine.cpu_name}{threads}"


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise IdeficsError(f"cannot write `{path}`: {error.strerror or error}") from error
