"""`idefics tune --dry-run`: what a run would do, after a few steps that are thrown away."""

from __future__ import annotations

from dataclasses import asdict, replace
from threading import Event
from typing import TYPE_CHECKING

from idefics_cli.cli.commands.tune.skills import expected_rows
from idefics_cli.cli.commands.tune.work import TuneWork, load_model, make_run
from idefics_cli.core.errors import EXIT_DONE, EXIT_PARTIAL
from idefics_cli.core.files import scratch_folder
from idefics_cli.training.tuning.estimate import TrainingSize, estimate_training
from idefics_cli.training.tuning.output import OutputFolder
from idefics_cli.ui.views.tuning import Rehearsal, rehearsal_lines

if TYPE_CHECKING:
    from idefics_cli.models.loading.loader import Loaded
    from idefics_cli.training.tuning.run import TuneRun


def rehearse(work: TuneWork) -> int:
    """Tell what *work* would do, and return the exit code."""
    console = work.invocation.console
    loaded = load_model(work)
    work = replace(work, job=work.job.with_rows(expected_rows(work, loaded)))
    with (
        scratch_folder("idefics-tune") as folder,
        OutputFolder(folder / "run") as output,
        console.status("timing some steps"),
    ):
        run = make_run(work, loaded, output, stop=Event(), on_event=lambda event: None)
        try:
            seconds = run.probe()
        finally:
            run.close()
    rehearsal = _rehearsal(work, loaded, run, *seconds)
    if work.invocation.settings.json:
        console.json(asdict(rehearsal))
    else:
        for line in rehearsal_lines(rehearsal):
            console.report(line)
    return EXIT_PARTIAL if work.data.faults else EXIT_DONE


def _rehearsal(
    work: TuneWork, loaded: Loaded, run: TuneRun, first_seconds: float, later_seconds: float
) -> Rehearsal:
    from idefics_cli.training.steps import count_labels

    job, facts = work.job, work.plan.facts
    longest = max(len(example.tokens.token_ids) for example in job.train)
    labelled = sum(count_labels(example) for example in job.train)
    all_tokens = sum(len(example.tokens.token_ids) for example in job.train)
    tokens = min(run.micro_tokens, longest * (job.choices.batch_size or 1))
    size = TrainingSize(
        trained=run.targets.weights,
        vocabulary=loaded.vocabulary,
        tokens=tokens,
        longest=longest,
        labelled=round(labelled / all_tokens * tokens),
        checkpointing=bool(job.choices.checkpointing),
        computed=work.computed,
    )
    per_epoch = min(job.steps_of_epoch, job.steps)
    return Rehearsal(
        rows=len(work.data.train),
        replayed_rows=len(job.train) - len(work.data.train),
        validation_rows=len(job.validation),
        left_out=dict(work.data.left_out),
        tokens=all_tokens,
        longest=longest,
        labelled=labelled,
        layers=len(run.targets.layers),
        trained=run.targets.weights,
        steps=job.steps,
        seconds=per_epoch * first_seconds + (job.steps - per_epoch) * later_seconds,
        memory=estimate_training(work.spec, facts.shape, facts.parameters, size),
        device=work.spec.device,
    )
