"""`idefics bench`: ours against plain transformers on this machine, in one run."""

from __future__ import annotations

import json as json_format
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idefics_cli import __version__
from idefics_cli.cli import options
from idefics_cli.cli.commands.bench.choices import Asked, captioned_pictures, parse
from idefics_cli.cli.invocation import Invocation, begin_command
from idefics_cli.cli.model_choice import plan_for, report_warnings
from idefics_cli.core.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    IdeficsError,
    ModelError,
)

if TYPE_CHECKING:
    from idefics_cli.bench.report import Report
    from idefics_cli.bench.stage import Choices, World
    from idefics_cli.hardware.machine import Machine
    from idefics_cli.models.planning.plan import Plan

_PANEL = "Measuring"


def bench(
    context: typer.Context,
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SCENARIO]...",
            help="start, load, vision, prefill, decode, chat or caption; all if absent. After "
            "`caption`, a folder of pictures.",
            show_default=False,
        ),
    ] = None,
    batch_sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N",
            help="Requests at a time. (default: 1,4,16; 1,4 for large models on a CPU)",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Prompt tokens. (default: 800,2000)", rich_help_panel=_PANEL
        ),
    ] = None,
    new_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Length of an answer. (default: 24)", rich_help_panel=_PANEL
        ),
    ] = None,
    rounds: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Most rounds of a figure. (default: 5)", rich_help_panel=_PANEL
        ),
    ] = None,
    seconds: Annotated[
        str | None,
        typer.Option(
            metavar="X",
            help="Begin no further round of a figure after so long. (default: 30; 1.5 for demo)",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            metavar="",
            help="Fewer figures and rounds.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = False,
    count: options.Count = None,
    model: options.Model = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Random weights of the real shape of smolvlm-256m, smolvlm-500m, smolvlm-2.2b, "
            "idefics2-8b or idefics3-8b; no download.",
            rich_help_panel=options.MODEL_PANEL,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Cut the shape to so many text layers, and as many vision layers.",
            rich_help_panel=options.MODEL_PANEL,
        ),
    ] = None,
    vision_layers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Cut the shape to so many vision layers.",
            rich_help_panel=options.MODEL_PANEL,
        ),
    ] = None,
    keep_weights: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Keep the random weights here and use them again.",
            rich_help_panel=options.MODEL_PANEL,
        ),
    ] = None,
    revision: options.Revision = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.QuantizationName = None,
    plain_quantization: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Quantize plain transformers otherwise than ours: none, 8bit or 4bit.",
            rich_help_panel=options.MODEL_PANEL,
        ),
    ] = None,
    attention: options.AttentionName = None,
    splitting: options.Splitting = None,
    offline: options.Offline = None,
    threads: options.Threads = None,
    json: options.Json = None,
    report_file: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the figures of all rounds to this JSON file.",
            rich_help_panel=options.OUTPUT_PANEL,
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Draw the ratios into this PNG file.",
            rich_help_panel=options.OUTPUT_PANEL,
        ),
    ] = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Measure ours against plain transformers: same weights, same requests, in turns.

    `idefics bench -m demo`

    `idefics bench decode vision --shape idefics2-8b --layers 4`

    `idefics bench caption photos/ -m smolvlm-256m --plot captions.png`

    Each figure is the median of interleaved rounds after one to warm up. The answers of both
    sides are compared; where they differ, the exit code is 3. Ctrl-C shows what was measured.
    """
    invocation = begin_command(context)
    asked = parse(
        scenarios or [],
        batch_sizes=batch_sizes,
        contexts=contexts,
        new_tokens=new_tokens,
        rounds=rounds,
        seconds=seconds,
        shape=shape,
        layers=layers,
        vision_layers=vision_layers,
        keep_weights=keep_weights,
        plain_quantization=plain_quantization,
        quick=quick,
        outputs=(report_file, plot),
        count=invocation.settings.count if invocation.resolved.is_given("count") else None,
        model_given=invocation.resolved.is_given("model"),
    )
    with _planned(invocation, asked) as bench_plan:
        report = _measure(invocation, asked, bench_plan)
    raise typer.Exit(
        _deliver(invocation, report, asked, bench_plan, report_file=report_file, plot=plot)
    )


@dataclass(frozen=True, slots=True)
class _BenchPlan:
    """What will be measured.

    Attributes:
        plan: Of the model.
        folder: Of its files.
        name: What a command line calls it.
        title: What people call it.
        machine: This one.
    """

    plan: Plan
    folder: Path
    name: str
    title: str
    machine: Machine


@contextmanager
def _planned(invocation: Invocation, asked: Asked) -> Iterator[_BenchPlan]:
    with invocation.console.status("starting"):
        machine = invocation.services.probe()
    if asked.shape is None:
        plan = plan_for(invocation, machine)
        report_warnings(invocation, plan)
        folder = plan.facts.folder
        if folder is None:
            name = plan.spec.name or plan.spec.repo
            raise ModelError(
                f"`{name}` is not downloaded", hint=f"`idefics models pull {name}` first"
            )
        yield _BenchPlan(plan, folder, invocation.settings.model, plan.facts.name, machine)
        return
    with tempfile.TemporaryDirectory(prefix="idefics-weights-") as scratch:
        folder = Path(asked.keep_weights).absolute() if asked.keep_weights else Path(scratch, "m")
        yield _random_weights(invocation, asked, folder, machine)


def _random_weights(
    invocation: Invocation, asked: Asked, folder: Path, machine: Machine
) -> _BenchPlan:
    from idefics_cli.bench.random_model import make
    from idefics_cli.bench.shapes import SHAPES
    from idefics_cli.core.units import format_parameters

    assert asked.shape is not None
    settings = invocation.settings
    # The best format of this machine is that of a small model; a large one might ask for 4 bit,
    # which must be chosen on purpose here.
    small = plan_for(_with(invocation, model="demo", quantization="none"), machine)
    with invocation.console.status("making random weights"):
        count = make(
            folder,
            SHAPES[asked.shape],
            dtype=small.spec.dtype,
            layers=asked.layers,
            vision_layers=asked.vision_layers,
        )
    chosen = "none" if settings.quantization == "auto" else settings.quantization
    plan = plan_for(
        _with(
            invocation,
            model=str(folder),
            dtype=small.spec.dtype,
            quantization=chosen,
            device=small.spec.device,
        ),
        machine,
    )
    report_warnings(invocation, plan)
    cut = f", {asked.layers} text layers" if asked.layers else ""
    title = f"random weights of the shape of {asked.shape}{cut} ({format_parameters(count)})"
    return _BenchPlan(plan, folder, str(folder), title, machine)


def _with(invocation: Invocation, **changes: str) -> Invocation:
    settings = replace(invocation.settings, **changes)  # type: ignore[arg-type]  # texts only
    return replace(invocation, resolved=replace(invocation.resolved, settings=settings))


def _measure(invocation: Invocation, asked: Asked, plan: _BenchPlan) -> Report:
    from idefics_cli.bench.report import Report
    from idefics_cli.bench.run import run
    from idefics_cli.ui.views.bench import BenchProgress

    progress = BenchProgress(invocation.console)
    choices = _choices(invocation, asked, plan.plan)
    world = _world(invocation, plan, progress)
    report = Report(_about(invocation, asked, plan))
    try:
        run(asked.names, world, choices, report, on_result=progress.show)
    finally:
        progress.clear()
    return report


def _choices(invocation: Invocation, asked: Asked, plan: Plan) -> Choices:
    from idefics_cli.bench.measure import Pace
    from idefics_cli.bench.stage import Choices
    from idefics_cli.cli.commands.caption.inputs import automatic_batch
    from idefics_cli.models.hub.registry import default_caption_prompt

    # The built-in model, all of which is to be measured within a minute.
    is_tiny = plan.facts.parameters < 50_000_000
    is_small = plan.facts.parameters < 1_000_000_000 or plan.spec.device != "cpu"
    every = ((1, 4, 16) if is_small else (1, 4)) if not asked.quick else (1,)
    return Choices(
        batch_sizes=asked.batch_sizes or every,
        contexts=asked.contexts or ((800,) if asked.quick else (800, 2000)),
        new_tokens=asked.new_tokens or (8 if asked.quick else 24),
        pace=Pace(
            asked.rounds or (2 if asked.quick else 5), asked.seconds or (1.5 if is_tiny else 30.0)
        ),
        quick=asked.quick,
        count=asked.count or (8 if asked.quick else 16 if is_tiny else 24),
        pictures=captioned_pictures(asked.folder),
        caption_prompt=default_caption_prompt(plan.spec.repo, chats=plan.spec.chats),
        caption_batch=automatic_batch(plan),
        both_splittings=invocation.settings.splitting is None and not asked.quick,
        plain_quantization=asked.plain_quantization,
    )


def _world(invocation: Invocation, plan: _BenchPlan, progress: object) -> World:
    from idefics_cli.bench.bandwidth import reference
    from idefics_cli.bench.cold_start.processes import FreshProcesses
    from idefics_cli.bench.measure import Instruments, SystemLoad
    from idefics_cli.bench.plain import Plain
    from idefics_cli.bench.stage import World
    from idefics_cli.cli.commands.bench.captions import caption_all, draw_scenes
    from idefics_cli.ui.views.bench import BenchProgress

    assert isinstance(progress, BenchProgress)
    clock = time.perf_counter
    services, spec = invocation.services, plan.plan.spec
    return World(
        spec=spec,
        folder=plan.folder,
        name=plan.name,
        make_engine=lambda wanted: services.make_factory(wanted)(),
        make_plain=lambda wanted: Plain(wanted, plan.folder, clock),
        caption=caption_all,
        draw_scenes=draw_scenes,
        processes=FreshProcesses(clock),
        instruments=Instruments(clock, SystemLoad(), reference(spec.device, clock)),
        say=progress.say,
    )


def _about(invocation: Invocation, asked: Asked, plan: _BenchPlan) -> dict[str, object]:
    from idefics_cli.ui.views.machine import machine_record

    spec = plan.plan.spec
    return {
        "idefics": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine_record(plan.machine),
        "model": plan.title,
        "random_weights": asked.shape is not None,
        "parameters": plan.plan.facts.parameters,
        "device": spec.device,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "format_4bit": spec.format_4bit if spec.quantization == "4bit" else None,
        "plain_quantization": asked.plain_quantization or spec.quantization,
        "attention": spec.attention,
        "threads": spec.threads,
        "splitting": spec.splitting,
        "scenarios": list(asked.names),
    }


def _deliver(
    invocation: Invocation,
    report: Report,
    asked: Asked,
    plan: _BenchPlan,
    *,
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
        text = json_format.dumps(report.record(), indent=1, ensure_ascii=False) + "\n"
        _write(Path(report_file), text.encode())
    if plot is not None and report.rows:
        from idefics_cli.ui.views.bench_plot import draw_plot

        _write(Path(plot), draw_plot(report, title))
    if report.is_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_PARTIAL if report.disagreements or report.failures else EXIT_DONE


def _title(plan: _BenchPlan, asked: Asked) -> str:
    spec = plan.plan.spec
    own, plain = (
        spec.dtype if method == "none" else f"{method} and {spec.dtype}"
        for method in (spec.quantization, asked.plain_quantization or spec.quantization)
    )
    if spec.quantization == "4bit":
        own = own.replace("4bit", f"4bit ({spec.format_4bit})")
        plain = plain.replace("4bit", "4bit (nf4)")
    what = own if own == plain else f"{own} against {plain}"
    threads = f", {spec.threads} threads" if spec.threads else ""
    gpu = next((g.name for g in plan.machine.gpus if spec.device.startswith("cuda")), None)
    return f"{plan.title}, {what} on {gpu or plan.machine.cpu_name}{threads}"


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise IdeficsError(f"cannot write `{path}`: {error.strerror or error}") from error
