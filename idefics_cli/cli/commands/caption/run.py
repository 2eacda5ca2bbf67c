"""The run of `idefics caption` and `idefics batch`: its progress and its outcome in words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    UsageError,
)
from idefics_cli.core.types import LoadSpec
from idefics_cli.core.units import counted

if TYPE_CHECKING:
    from idefics_cli.caption.events import RunEvent
    from idefics_cli.caption.item import ItemWords
    from idefics_cli.caption.job import CaptionJob
    from idefics_cli.caption.kind import ItemKind
    from idefics_cli.caption.outcome import RunOutcome
    from idefics_cli.caption.output import CaptionOutput
    from idefics_cli.cli.commands.caption.devices import Workers
    from idefics_cli.ui.terminal.console import Console
    from idefics_cli.ui.views.progress import CaptionProgress


def run(
    invocation: Invocation,
    spec: LoadSpec,
    job: CaptionJob,
    output: CaptionOutput,
    kind: ItemKind | None = None,
    workers: Workers | None = None,
) -> int:
    """Do *job*, whose items are pictures without *kind*, in *workers*; return the exit code."""
    from idefics_cli.caption.events import RunEnded
    from idefics_cli.caption.kind import PICTURES
    from idefics_cli.caption.run import caption_pictures

    settings, services, console = invocation.settings, invocation.services, invocation.console
    if settings.fail_fast and settings.max_failures:
        raise UsageError("--fail-fast and --max-failures exclude each other")
    kind = kind or PICTURES
    with _progress(invocation, spec.name or spec.repo, kind) as progress:

        def on_event(event: RunEvent) -> None:
            progress.handle(event)
            if isinstance(event, RunEnded):
                _print_end(console, job, event.outcome, progress, settings.max_failures, kind.words)

        outcome = caption_pictures(
            job,
            replace(output, stdout=progress.stdout),
            spec,
            kind=kind,
            factory=services.make_factory(spec),
            executor=workers.executor if workers else "local",
            workers=workers.factories(services.make_factory) if workers else (),
            retry_failed=settings.retry_failed,
            max_failures=0 if settings.fail_fast else settings.max_failures,
            on_event=on_event,
        )
    if output.report is not None:
        _print_report(console, output, outcome)
    return _exit_code(outcome, output)


def _progress(invocation: Invocation, model: str, kind: ItemKind) -> CaptionProgress:
    from idefics_cli.ui.views.progress import CaptionProgress

    return CaptionProgress(
        invocation.console,
        clock=invocation.services.clock,
        model=model,
        verbose=invocation.settings.verbose,
        kind=kind,
    )


def _print_end(
    console: Console,
    job: CaptionJob,
    outcome: RunOutcome,
    progress: CaptionProgress,
    most_failures: int | None,
    words: ItemWords,
) -> None:
    if outcome.end in ("interrupted", "stopped"):
        console.tell(f"interrupted: {progress.summary}")
        _print_how_to_continue(console, outcome)
        return
    console.tell(progress.summary if progress.total else f"nothing is left to {words.do}")
    if progress.shares:
        console.note(f"by each worker: {progress.shares}")
    if progress.cut:
        results = f"one {words.result} was"
        if progress.cut > 1:
            results = f"{progress.cut} {words.result}s were"
        # Requests of a batch may have their own limits, so the note then names no number.
        limit = f"after {counted(job.sampling.max_new_tokens, 'token')}"
        if job.takes_any_reply:
            limit = "at the limit of its request"
        console.note(f"{results} cut {limit}; `--max-new-tokens` sets the limit")
    if outcome.end == "failures":
        console.note(_reason_to_stop(most_failures, words))
        _print_how_to_continue(console, outcome)
    if outcome.failures is not None:
        console.note(f"`{outcome.failures}` lists what failed")


def _reason_to_stop(most_failures: int | None, words: ItemWords) -> str:
    if not most_failures:
        return "stopped at the first failure"
    return f"stopped, because more than {counted(most_failures, words.one)} failed"


def _print_how_to_continue(console: Console, outcome: RunOutcome) -> None:
    if outcome.is_resumable:
        console.note("the same command continues from here")
    else:
        console.note("with `-o FILE`, the same command could continue from here")


def _print_report(console: Console, output: CaptionOutput, outcome: RunOutcome) -> None:
    count = outcome.reported
    if count is None:
        console.note(f"`{output.report}` was not written; the same command makes it")
    else:
        console.note(
            f"`{output.report}` shows {'one picture' if count == 1 else f'{count} pictures'}"
        )


def _exit_code(outcome: RunOutcome, output: CaptionOutput) -> int:
    lacks_report = output.report is not None and outcome.reported is None
    if outcome.end in ("interrupted", "stopped") or lacks_report:
        return EXIT_INTERRUPTED
    if not outcome.failed + outcome.todo.failed:
        return EXIT_DONE
    return EXIT_PARTIAL if outcome.captioned + outcome.todo.captioned else EXIT_FAILURE
