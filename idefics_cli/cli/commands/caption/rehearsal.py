"""`idefics caption --dry-run`: shows what a run would do, and how long it would take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from idefics_cli.cli.answer import show_server
from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import image_limits
from idefics_cli.core.units import counted, format_duration
from idefics_cli.models.families.abilities import takes_videos

if TYPE_CHECKING:
    from idefics_cli.caption.item import CaptionItem
    from idefics_cli.caption.job import CaptionJob
    from idefics_cli.caption.output import CaptionOutput
    from idefics_cli.caption.resume.todo import Todo
    from idefics_cli.cli.commands.caption.devices import Workers
    from idefics_cli.cli.commands.caption.inputs import CaptionTarget


def show_run(
    invocation: Invocation,
    target: CaptionTarget,
    job: CaptionJob,
    output: CaptionOutput,
    *,
    workers: Workers | None,
) -> None:
    """Print what a run of *workers* would do, and how long it would take; None is one process.

    To measure the time, the model captions a few pictures if it is downloaded.

    Raises:
        UsageError: If the output has a run with other settings.
    """
    from idefics_cli.caption.run import left_to_do

    console, spec = invocation.console, target.spec
    retry_failed = invocation.settings.retry_failed
    todo = left_to_do(job, output, spec, retry_failed=retry_failed)
    readable = _readable(invocation, todo, takes_videos=takes_videos(spec))
    left, bad = len(readable), len(todo.pictures) - len(readable)
    count = max(1, min(left, len(workers.names))) if workers else 1
    seconds = _seconds(invocation, target, replace(job, pictures=readable), count)
    if invocation.settings.json:
        run = {"pictures": len(job.pictures), "left": left, "unreadable": bad}
        times = {"batch_size": job.batch_size, "seconds": seconds}
        console.json({**_described(target), **run, **times, **_asked(job), **_constraint(job)})
    else:
        _show_target(invocation, target)
        for line in _left(left, len(job.pictures), todo.failed, bad):
            console.line(line)
        if todo.pictures:
            _show_job(invocation, replace(job, pictures=readable))
        if seconds is not None:
            console.line(_estimate(seconds, left, count))
    if workers:
        console.note(workers.described)


def _left(left: int, total: int, failed: int, unreadable: int) -> Iterator[str]:
    if left < total:
        yield f"left to caption: {left} of {counted(total, 'picture')}"
    if failed:
        yield f"{failed} failed before (`--retry-failed` tries them again)"
    if unreadable:
        yield f"{counted(unreadable, 'picture')} cannot be read"


def _readable(invocation: Invocation, todo: Todo, *, takes_videos: bool) -> tuple[CaptionItem, ...]:
    """Return the pictures of *todo* whose headers can be read; print an error for each other."""
    from idefics_cli.caption.rehearsal import unreadable

    limits, bad = image_limits(invocation.settings), set()
    with invocation.console.status("checking the pictures"):
        for item, error in unreadable(todo.pictures, limits, takes_videos=takes_videos):
            invocation.console.error(error)
            bad.add(item.key)
    return tuple(item for item in todo.pictures if item.key not in bad)


def _show_job(invocation: Invocation, job: CaptionJob) -> None:
    invocation.console.line(_summary(job))
    for name, text in _constraint(job).items():
        invocation.console.line(f"answers match the {name} {text}")


def _show_target(invocation: Invocation, target: CaptionTarget) -> None:
    from idefics_cli.ui.views.plan import render_plan

    if target.plan is None:
        show_server(invocation, target.spec)
    else:
        invocation.console.report(render_plan(target.plan))


def _described(target: CaptionTarget) -> dict[str, object]:
    if target.plan is not None:
        return target.plan.to_dict()
    assert target.spec.server is not None
    return {"model": target.spec.name, "server": target.spec.server.url}


def _seconds(
    invocation: Invocation, target: CaptionTarget, job: CaptionJob, workers: int
) -> float | None:
    """Return how long the pictures of *job* would take; None if the model is not on this machine.

    One process measures a picture. *workers* divide the time, because each has a device or cores
    of its own.

    Nodes of a cluster have another speed than this machine.
    """
    from idefics_cli.caption.rehearsal import seconds_per_picture

    is_missing = target.plan is not None and target.plan.facts.folder is None
    if is_missing or not job.pictures or invocation.settings.ray is not None:
        return None
    spec, services = target.spec, invocation.services
    with invocation.console.status(f"loading {spec.name or spec.repo}") as progress:
        each = seconds_per_picture(
            job, services.make_factory(spec), clock=services.clock, progress=progress
        )
    return None if each is None else each * len(job.pictures) / workers


def _estimate(seconds: float, left: int, workers: int) -> str:
    among = "" if workers == 1 else f" with {workers} workers"
    return f"about {format_duration(seconds)}{among}, measured with {_probed(left)}"


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
