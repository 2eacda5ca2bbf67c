"""The run of a benchmark: what the command line asks for becomes `Choices` and a `World`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from idefics_cli import __version__
from idefics_cli.cli.commands.bench.choices import Asked, captioned_pictures
from idefics_cli.cli.commands.bench.planned import BenchPlan
from idefics_cli.cli.invocation import Invocation

if TYPE_CHECKING:
    from idefics_cli.bench.report import Report
    from idefics_cli.bench.stage import Choices, World
    from idefics_cli.models.planning.plan import Plan
    from idefics_cli.ui.views.bench import BenchProgress


def measure(invocation: Invocation, asked: Asked, plan: BenchPlan) -> Report:
    """Measure the scenarios that *asked* names, and show the progress on stderr."""
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
    from idefics_cli.training.tuning.job import TuneChoices, make_job

    settings, resolved = invocation.settings, invocation.resolved
    count = settings.count if resolved.is_given("count") else None
    # The built-in model gets shorter measurements, so that its whole benchmark takes a minute.
    is_tiny = plan.facts.parameters < 50_000_000
    is_small = plan.facts.parameters < 1_000_000_000 or plan.spec.device != "cpu"
    tuned = make_job(TuneChoices(), [], [], plan.facts.parameters).choices
    every = ((1, 4, 16) if is_small else (1, 4)) if not asked.quick else (1,)
    return Choices(
        batch_sizes=asked.batch_sizes or every,
        contexts=asked.contexts or ((800,) if asked.quick else (800, 2000)),
        new_tokens=asked.new_tokens or (8 if asked.quick else 24),
        pace=Pace(
            asked.rounds or (2 if asked.quick else 5), asked.seconds or (1.5 if is_tiny else 30.0)
        ),
        quick=asked.quick,
        count=count if count is not None else 8 if asked.quick else 16 if is_tiny else 24,
        pictures=captioned_pictures(asked.folder),
        caption_prompt=default_caption_prompt(plan.spec.repo, chats=plan.spec.chats),
        caption_batch=automatic_batch(plan),
        both_splittings=settings.splitting is None and not asked.quick,
        plain_quantization=asked.plain_quantization,
        train_rows=8 if is_tiny else 4,
        train_dtype=settings.dtype if resolved.is_given("dtype") else "auto",
        checkpointing=bool(tuned.checkpointing),
    )


def _world(invocation: Invocation, plan: BenchPlan, progress: BenchProgress) -> World:
    from idefics_cli.bench.bandwidth import reference
    from idefics_cli.bench.cold_start.processes import FreshProcesses
    from idefics_cli.bench.measure import Instruments
    from idefics_cli.bench.plain import Plain
    from idefics_cli.bench.serving.processes import open_server
    from idefics_cli.bench.stage import World
    from idefics_cli.bench.tuning.process import open_trainer
    from idefics_cli.cli.commands.bench.captions import caption_all, draw_scenes
    from idefics_cli.cli.commands.bench.scaling import measure_bytes, run_workers
    from idefics_cli.hardware.load import SystemLoad

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
        open_trainer=open_trainer,
        open_server=open_server,
        run_workers=run_workers,
        measure_bytes=measure_bytes,
        instruments=Instruments(clock, SystemLoad(), reference(spec.device, clock)),
        say=progress.say,
    )


def _about(invocation: Invocation, asked: Asked, plan: BenchPlan) -> dict[str, object]:
    from idefics_cli.ui.views.machine import machine_record

    spec = plan.plan.spec
    return {
        "idefics": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine_record(plan.machine),
        "model": plan.title,
        "random_weights": asked.weights is not None,
        "parameters": plan.plan.facts.parameters,
        "device": spec.device,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "format_4bit": spec.format_4bit if spec.quantization == "4bit" else None,
        "plain_quantization": asked.plain_quantization or spec.quantization,
        "attention": spec.attention,
        "threads": spec.threads,
        "splitting": spec.splitting,
        "longest_edge": spec.longest_edge,
        "scenarios": list(asked.names),
    }
