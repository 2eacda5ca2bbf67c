"""`idefics caption`: one caption for each of many pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from idefics_cli.cli import options
from idefics_cli.cli.caption_output import chosen_output
from idefics_cli.cli.caption_run import run, show_run
from idefics_cli.cli.invocation import Invocation, begin
from idefics_cli.cli.loading import check_prompt, plan_for, sampling, tell_warnings
from idefics_cli.config.settings import CAPTION_TOKENS
from idefics_cli.core.errors import EXIT_DONE, EXIT_PARTIAL, UsageError

if TYPE_CHECKING:
    from idefics_cli.caption.discover import Listing
    from idefics_cli.caption.job import CaptionJob
    from idefics_cli.models.plan import Plan


def caption(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Files, folders, globs (`**` for any depth), URLs; `-` for a picture on stdin.",
        ),
    ],
    recursive: options.Recursive = None,
    batch_size: options.BatchSize = None,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.QuantizationName = None,
    attention: options.AttentionName = None,
    splitting: options.Splitting = None,
    offline: options.Offline = None,
    threads: options.Threads = None,
    yes: options.Yes = None,
    prompt: options.CaptionPrompt = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = None,
    max_pixels: options.MaxPixels = None,
    max_bytes: options.MaxBytes = None,
    timeout_seconds: options.TimeoutSeconds = None,
    format: options.Format = None,
    output: options.Output = None,
    existing: options.Existing = None,
    overwrite: options.Overwrite = None,
    full_names: options.FullNames = None,
    retry_failed: options.RetryFailed = None,
    failures: options.Failures = None,
    fail_fast: options.FailFast = None,
    max_failures: options.MaxFailures = None,
    dry_run: options.DryRun = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    r"""Caption pictures, one line each: the path, a tab, the caption.

    `idefics caption photos/ -r --format jsonl -o photos.jsonl`

    In a path or caption, a line break is written as `\n`, a tab as `\t`, a backslash as `\\`.
    Pictures that fail are told on stderr, and the others go on; the exit code is then 3.
    """
    from idefics_cli.caption.discover import discover

    invocation = begin(context)
    _check_stdin(invocation, paths)
    destination = chosen_output(invocation)
    listing = discover(paths, recursive=invocation.settings.recursive)
    plan = plan_for(invocation)
    job = _job(invocation, listing, plan)
    if invocation.settings.dry_run:
        show_run(invocation, plan, job)
        return
    for problem in listing.problems:
        invocation.console.error(problem)
    tell_warnings(invocation, plan)
    code = run(invocation, plan, job, destination)
    raise typer.Exit(EXIT_PARTIAL if code == EXIT_DONE and listing.problems else code)


def _check_stdin(invocation: Invocation, paths: list[str]) -> None:
    stdin = invocation.services.stdin
    if "-" in paths and (stdin is None or stdin.closed or stdin.isatty()):
        raise UsageError("`-` needs a picture on stdin", hint="`idefics caption - <PICTURE`")


def _job(invocation: Invocation, listing: Listing, plan: Plan) -> CaptionJob:
    from idefics_cli.caption.job import CaptionJob, Question
    from idefics_cli.models.registry import default_caption_prompt

    settings = invocation.settings
    prompt = settings.prompt
    if prompt is None:
        prompt = default_caption_prompt(plan.spec.repo, chats=plan.spec.chats)
    check_prompt(prompt, hint="leave `--prompt` out for the model's own")
    return CaptionJob(
        pictures=listing.pictures,
        questions=(Question(prompt),),
        mode="chat" if plan.spec.chats else "complete",
        sampling=sampling(settings, default_tokens=CAPTION_TOKENS),
        batch_size=settings.batch_size or _batch_size(plan),
    )


def _batch_size(plan: Plan) -> int:
    from idefics_cli.caption.job import automatic_batch_size

    return min(
        automatic_batch_size(
            plan.spec.device,
            plan.facts.parameters,
            spare_bytes=need.usable - need.total,
            picture_bytes=need.kv_cache + need.working,
        )
        for need in plan.needs
    )
