"""The run of `idefics tune`: data, model, steps, and what is written at the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from idefics_cli import __version__
from idefics_cli.cli.commands.tune.data import DataChoices, check_data, prepared_data
from idefics_cli.cli.commands.tune.rehearsal import rehearse
from idefics_cli.cli.commands.tune.skills import other_requests, replayed_rows
from idefics_cli.cli.commands.tune.work import TuneWork, load_model, make_answer, make_run
from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import plan_for, report_warnings
from idefics_cli.core.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    UsageError,
)
from idefics_cli.core.paths import display_path
from idefics_cli.core.units import counted
from idefics_cli.models.hub.adapters import config_digest
from idefics_cli.training.tuning.card import CardFacts, card, license_in
from idefics_cli.training.tuning.job import TuneChoices, make_job, settings_of
from idefics_cli.training.tuning.output import (
    CARD,
    PLOT,
    SAMPLES,
    OutputFolder,
    check_folder_of_run,
)
from idefics_cli.ui.views.tuning import (
    TuneProgress,
    tell_data,
)

_SAMPLES = 8

if TYPE_CHECKING:
    from torch import nn

    from idefics_cli.core.types import LoadSpec
    from idefics_cli.models.hub.facts import ModelFacts
    from idefics_cli.models.loading.loader import Loaded
    from idefics_cli.training.tuning.result import TuneResult


def tune_model(
    invocation: Invocation,
    chosen: DataChoices,
    choices: TuneChoices,
    folder: Path,
    *,
    plots: bool,
) -> int:
    """Train the chosen model on the chosen data, and return the exit code."""
    # These checks come before all that imports torch.
    check_data(chosen)
    if not invocation.settings.dry_run:
        check_folder_of_run(folder)
    try:
        return _tune(invocation, chosen, choices, folder, plots=plots)
    except KeyboardInterrupt:
        invocation.console.tell("interrupted before the first step; nothing was written")
        return EXIT_INTERRUPTED


def _tune(
    invocation: Invocation,
    chosen: DataChoices,
    choices: TuneChoices,
    folder: Path,
    *,
    plots: bool,
) -> int:
    console, settings = invocation.console, invocation.settings
    plan = plan_for(invocation)
    # The plan comes first, because it finds some errors before torch is imported.
    from idefics_cli.models.loading.loader import open_family
    from idefics_cli.training.precision import training_spec
    from idefics_cli.training.targets import import_peft

    if plan.spec.adapter is not None:
        raise UsageError("an adapter cannot be trained further", hint="`-m` names its base model")
    report_warnings(invocation, plan)
    full, dora = choices.full, choices.dora
    spec, computed = training_spec(plan.spec, dtype=settings.dtype, full=full, dora=dora)
    if not full:
        import_peft()
    with ExitStack() as stack:
        with console.status("reading the data") as progress:
            family, _ = open_family(spec, report=progress)
            context = plan.facts.context_tokens
            data = stack.enter_context(
                prepared_data(invocation, chosen, spec, family, context, report=progress)
            )
        job = make_job(choices, data.train, data.validation, plan.facts.parameters)
        work = TuneWork(invocation, plan, spec, computed, job, chosen.data, data)
        if settings.dry_run:
            return rehearse(work)
        tell_data(console, data.summaries, learned=len(data.train), tried=len(data.validation))
        output = stack.enter_context(OutputFolder(folder, overwrite=settings.overwrite))
        if output.start(_run_of(work)):
            console.note(f"{display_path(folder)} is done; `--overwrite` starts again")
            return EXIT_DONE
        return _run_or_discard(work, output, plots=plots)


def _run_or_discard(work: TuneWork, output: OutputFolder, *, plots: bool) -> int:
    try:
        return _run(work, output, plots=plots)
    except KeyboardInterrupt:
        if output.discard():
            raise
        work.invocation.console.note("the same command continues from the last checkpoint")
        return EXIT_INTERRUPTED


def _run(work: TuneWork, output: OutputFolder, *, plots: bool) -> int:
    from idefics_cli.caption.interrupts import Interrupts

    console, clock = work.invocation.console, work.invocation.services.clock
    loaded = load_model(work)
    with console.status("asking the model other questions"):
        replayed = replayed_rows(work, loaded, output, make_answer(work, loaded))
    work = replace(work, job=work.job.with_rows(replayed))
    if replayed:
        count = counted(len(replayed), "answer")
        console.tell(f"{count} of the model to other questions are learned too, to keep its skills")
    view = TuneProgress(console, clock=clock)
    interrupts = Interrupts(view.show_stopping)
    interrupts.is_patient = True
    with interrupts.handled(), view:
        run = make_run(
            work,
            loaded,
            output,
            stop=interrupts.stop,
            on_event=view.handle,
            others=other_requests(work),
        )
        write = _writer(work, loaded, output)
        try:
            with interrupts.allowed():
                result = run.run(write)
        finally:
            run.close()
        if work.job.choices.full:
            write()
    return _finish(work, output, result, run.targets.weights, plots=plots)


def _writer(work: TuneWork, loaded: Loaded, output: OutputFolder) -> Callable[[], None]:
    """Return what writes the weights of *loaded* as they are."""
    from idefics_cli.training.targets import LoraChoice
    from idefics_cli.training.tuning.files import write_adapter, write_model

    choices, model = work.job.choices, loaded.model
    if choices.full:
        return lambda: write_model(output, cast("nn.Module", model), loaded.folder)
    lora = LoraChoice(
        choices.parts,
        rank=choices.rank,
        alpha=choices.alpha or 0.0,
        dropout=choices.dropout,
        is_dora=choices.dora,
    )
    return lambda: write_adapter(
        output, cast("nn.Module", model), loaded.family.spec, lora, base=work.spec.repo
    )


def _finish(
    work: TuneWork, output: OutputFolder, result: TuneResult, weights: int, *, plots: bool
) -> int:
    console, job = work.invocation.console, work.job
    if plots:
        from idefics_cli.ui.views.loss_plot import draw_loss

        output.write(PLOT, draw_loss(output.log_lines()).encode())
    if not result.is_whole:
        console.tell(f"interrupted after {result.step} of {result.steps} steps")
        console.note("the same command continues from here")
        return EXIT_INTERRUPTED
    facts = CardFacts(
        title=output.path.resolve().name,
        base=work.spec.repo,
        data=work.name,
        rows=len(work.data.train),
        validation=len(job.validation),
        weights=weights,
        steps=result.steps,
        weights_step=result.weights_step,
        version=__version__,
        license=_license_of(work.plan.facts.folder),
    )
    output.write(CARD, card(facts, job.choices, result.evaluations, result.samples).encode())
    _write_samples(work, output, result)
    record = {**output.read_record(), "finished": True, "result": _record(work, result, weights)}
    output.write_record(record)
    output.checkpoints.remove()
    _tell_end(work, output, result)
    return EXIT_PARTIAL if work.data.faults else EXIT_DONE


def _license_of(folder: Path | None) -> str | None:
    """Return the license in the model card of the base, if its folder has one."""
    try:
        return license_in((folder / CARD).read_text(encoding="utf-8")) if folder else None
    except (OSError, UnicodeDecodeError):
        return None


def _tell_end(work: TuneWork, output: OutputFolder, result: TuneResult) -> None:
    console, folder = work.invocation.console, display_path(output.path)
    if result.others:
        console.tell(
            f"{result.kept} of {result.others} answers to other questions have not changed"
        )
    if result.weights_step != result.steps:
        console.note(f"the weights are those after step {result.weights_step}, the best ones")
    for sample in result.samples[:3]:
        console.tell(f"  wanted  {sample.wanted}")
        console.tell(f"  before  {sample.before}")
        console.tell(f"  after   {sample.after}")
    if work.invocation.settings.json:
        console.json(output.read_record()["result"])
    else:
        console.line(str(output.path))
    option = "-m" if work.job.choices.full else "--adapter"
    console.note(f"`idefics caption PICTURES {option} {folder}` uses it")


def _record(work: TuneWork, result: TuneResult, weights: int) -> dict[str, object]:
    job = work.job
    return {
        "rows": len(work.data.train),
        "replayed_rows": len(job.train) - len(work.data.train),
        "validation_rows": len(job.validation),
        "left_out": dict(work.data.left_out),
        "tokens": work.data.tokens,
        "weights": weights,
        "steps": result.steps,
        "weights_step": result.weights_step,
        "evaluations": [
            {"step": e.step, "loss": e.loss, "exact": e.exact, "asked": e.asked}
            for e in result.evaluations
        ],
        "other_questions": {"asked": result.others, "unchanged": result.kept},
        "samples": [asdict(sample) for sample in result.samples[:_SAMPLES]],
    }


def _write_samples(work: TuneWork, output: OutputFolder, result: TuneResult) -> None:
    from idefics_cli.caption.gallery.report import write_report
    from idefics_cli.core.types import CaptionRecord

    records = [
        CaptionRecord(
            sample.source or "(no picture)",
            caption=sample.after or " ",
            answers=(
                ("wanted", sample.wanted),
                ("before", sample.before),
                ("after", sample.after),
            ),
        )
        for sample in result.samples
    ]
    if records:
        write_report(
            output.path / SAMPLES,
            records,
            columns=("wanted", "before", "after"),
            title=f"Samples of {output.path.resolve().name}",
            limits=work.spec.limits,
        )


def _detail(spec: LoadSpec, facts: ModelFacts) -> dict[str, object]:
    """Return the detail of pictures, as it is also without a choice of the user."""
    edges = facts.shape.edges
    return {
        "splitting": facts.splitting if spec.splitting is None else spec.splitting,
        "longest_edge": spec.longest_edge or (edges.usual if edges else None),
    }


def _run_of(work: TuneWork) -> dict[str, object]:
    """Return all that the result of the run depends on."""
    spec, facts, folder = work.spec, work.plan.facts, work.plan.facts.folder
    return {
        "version": __version__,
        "model": spec.repo,
        "commit": folder.name if folder and folder.parent.name == "snapshots" else None,
        "family": spec.family,
        "dtype": work.computed,
        "quantization": spec.quantization,
        "base_config": config_digest(folder) if folder else None,
        **_detail(spec, facts),
        "prompt": work.data.prompt,
        "data": {"digest": work.job.data_digest, "rows": len(work.job.train)},
        "settings": settings_of(work.job.choices),
    }
