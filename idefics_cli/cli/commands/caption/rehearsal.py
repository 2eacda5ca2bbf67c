"""`idefics caption --dry-run`: shows what a run would do, and how long it would take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import image_limits
from idefics_cli.core.units import counted, format_duration
from idefics_cli.models.families.spec import find_family

if TYPE_CHECKING:
    from idefics_cli.caption.job import CaptionJob
    from idefics_cli.caption.output import CaptionOutput
    from idefics_cli.caption.resume.todo import Todo
    from idefics_cli.models.planning.plan import Plan


def show_run(invocation: Invocation, plan: Plan, job: CaptionJob, output: CaptionOutput) -> None:
    """Print what a run would do, and how long it would take.

    To measure the time, the model captions a few pictures if it is downloaded.

    Raises:
        UsageError: If the output has a run with other settings.
    """
    from idefics_cli.caption.rehearsal import unreadable
    from idefics_cli.caption.run import left_to_do
    from idefics_cli.ui.views.plan import render_plan

    console = invocation.console
    retry_failed = invocation.settings.retry_failed
    todo = left_to_do(job, output, plan.spec, retry_failed=retry_failed)
    bad = 0
    limits = image_limits(invocation.settings)
    is_for_videos = find_family(plan.spec.family).takes_videos
    with console.status("checking the pictures"):
        for error in unreadable(todo.pictures, limits, takes_videos=is_for_videos):
            console.error(error)
            bad += 1
    left = len(todo.pictures)
    seconds = _seconds(invocation, plan, job, todo)
    if invocation.settings.json:
        run = {"pictures": len(job.pictures), "left": left, "unreadable": bad}
        times = {"batch_size": job.batch_size, "seconds": seconds}
        console.json({**plan.to_dict(), **run, **times, **_asked(job), **_constraint(job)})
        return
    console.report(render_plan(plan))
    if left < len(job.pictures):
        console.line(f"left to caption: {left} of {counted(len(job.pictures), 'picture')}")
    if bad:
        console.line(f"{bad} cannot be read")
    if seconds is not None:
        console.line(f"about {format_duration(seconds)}, by a probe of {_probed(left)}")
    console.line(_summary(job))
    for name, text in _constraint(job).items():
        console.line(f"answers match the {name} {text}")


def _seconds(invocation: Invocation, plan: Plan, job: CaptionJob, todo: Todo) -> float | None:
    """Return how long the pictures of *todo* would take; None if the model is not downloaded."""
    from dataclasses import replace

    from idefics_cli.caption.rehearsal import seconds_per_picture

    if plan.facts.folder is None or not todo.pictures:
        return None
    job = replace(job, pictures=todo.pictures)
    spec, services = plan.spec, invocation.services
    with invocation.console.status(f"loading {spec.name or spec.repo}") as progress:
        each = seconds_per_picture(
            job, services.make_factory(spec), clock=services.clock, progress=progress
        )
    return None if each is None else each * len(todo.pictures)


def _probed(left: int) -> str:
    return (
        "three pictures"
        if left == 3
        else "a few pictures"
        if left > 3
        else counted(left, "picture")
    )


def _summary(job: CaptionJob) -> str:
    count = len(job.pictures)
    prompts = [f"`{question.prompt}`" for question in job.questions]
    return (
        f"{counted(count, 'picture')}, {job.batch_size} at a time, "
        f"{_samples(job)}with the prompt{'' if len(prompts) == 1 else 's'} {', '.join(prompts)}"
    )


def _samples(job: CaptionJob) -> str:
    return "" if job.samples == 1 else f"{job.samples} captions of each, "


def _constraint(job: CaptionJob) -> dict[str, str]:
    constraint = job.form.constraint if job.form else None
    return {} if constraint is None else {constraint.kind: constraint.text}


def _asked(job: CaptionJob) -> dict[str, object]:
    if any(question.name for question in job.questions):
        return {"questions": {question.name: question.prompt for question in job.questions}}
    return {"prompt": job.questions[0].prompt}
