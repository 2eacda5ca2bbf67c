"""`idefics caption`: one caption for each of many pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from idefics_cli.cli import options
from idefics_cli.cli.commands.caption.cluster import find_workers
from idefics_cli.cli.commands.caption.devices import Workers, warm_up
from idefics_cli.cli.commands.caption.inputs import (
    CaptionTarget,
    Inputs,
    caption_job,
    check_replies,
)
from idefics_cli.cli.commands.caption.job import show_job
from idefics_cli.cli.commands.caption.outputs import chosen_output, show_output_notes
from idefics_cli.cli.commands.caption.rehearsal import show_run
from idefics_cli.cli.commands.caption.run import run
from idefics_cli.cli.commands.caption.shard import find_shard, tars_of, with_shard
from idefics_cli.cli.examples import read_examples
from idefics_cli.cli.invocation import Invocation, begin_command
from idefics_cli.cli.model_choice import banned_words, plan_for, report_warnings
from idefics_cli.cli.reply_form import chosen_form
from idefics_cli.cli.server_choice import check_sight, served_spec
from idefics_cli.config.settings import CAPTION_TOKENS
from idefics_cli.core.errors import EXIT_DONE, EXIT_PARTIAL


def caption(
    context: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="Files, folders, globs (`**` for any depth), tar archives, URLs; `-` for stdin.",
            show_default=False,
        ),
    ] = None,
    recursive: options.Recursive = None,
    follow_links: options.FollowLinks = None,
    filelist: options.FileLists = None,
    null: options.Null = False,
    shard: options.Shard = None,
    batch_size: options.BatchSize = None,
    model: options.Model = None,
    server: options.Server = None,
    api_key_file: options.ServerKeyFile = None,
    revision: options.Revision = None,
    adapter: options.AdapterName = None,
    device: options.Device = None,
    devices: options.Devices = None,
    ray: options.Ray = None,
    workers: options.ClusterWorkers = None,
    dtype: options.Dtype = None,
    quantization: options.QuantizationName = None,
    attention: options.AttentionName = None,
    splitting: options.Splitting = None,
    longest_edge: options.LongestEdge = None,
    offline: options.Offline = None,
    threads: options.Threads = None,
    yes: options.Yes = None,
    prompt: options.CaptionPrompt = None,
    prompt_file: options.PromptFile = None,
    ask: options.Ask = None,
    schema: options.Schema = None,
    schema_prompt: options.SchemaPrompt = None,
    regex: options.Regex = None,
    choice: options.Choices = None,
    tags: options.Tags = None,
    example: options.Examples = None,
    examples: options.ExampleLists = None,
    ban: options.Ban = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = None,
    samples: options.Samples = None,
    prefix: options.Prefix = None,
    suffix: options.Suffix = None,
    trigger: options.Trigger = None,
    strip_preamble: options.StripPreamble = None,
    on_truncate: options.OnTruncate = None,
    max_pixels: options.MaxPixels = None,
    max_bytes: options.MaxBytes = None,
    timeout_seconds: options.TimeoutSeconds = None,
    truncated: options.Truncated = None,
    background: options.Background = None,
    format: options.Format = None,
    output: options.Output = None,
    existing: options.Existing = None,
    overwrite: options.Overwrite = None,
    embed: options.Embed = None,
    full_names: options.FullNames = None,
    text_extension: options.TextExtension = None,
    report: options.Report = None,
    retry_failed: options.RetryFailed = None,
    failures: options.Failures = None,
    fail_fast: options.FailFast = None,
    max_failures: options.MaxFailures = None,
    dry_run: options.DryRun = None,
    print_job: options.PrintJob = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    r"""Caption pictures, one line each: the path, a tab, the caption.

    `idefics caption photos/ -r --format jsonl -o photos.jsonl`

    In a path or caption, a line break is written as `\n`, a tab as `\t`, a backslash as `\\`.
    A picture that fails is reported on stderr, and the run continues; the exit code is then 3.
    """
    invocation = begin_command(context)
    given = Inputs(tuple(paths or ()), tuple(filelist or ()), null, prompt_file, tuple(ask or ()))
    given.check(invocation)
    form = chosen_form(
        invocation,
        schema=schema,
        regex=regex,
        choices=choice,
        tags=tags,
        default_tokens=CAPTION_TOKENS,
    )
    destination = chosen_output(invocation)
    if print_job is not None:
        show_job(invocation, context, given, destination, print_job)
        return
    chosen = find_shard(invocation, given, destination)
    (destination.of_shard(chosen.shard) if chosen else destination).check_place()
    questions = given.questions(invocation)
    check_replies(invocation.settings, questions, form)
    if warm := warm_up(invocation):
        context.call_on_close(warm.close)
    shown = read_examples(invocation, example or (), examples or ())
    banned = banned_words(ban or ())
    listing = given.listing(invocation, questions, tars_of(chosen, destination))
    for note in listing.notes:
        invocation.console.note(note)
    shared = find_workers(invocation, given, warm)
    target = _target(invocation, shared)
    job = caption_job(invocation, listing, questions, target, destination, form, shown)
    job = replace(job, banned=banned)
    if chosen is not None:
        job, destination = with_shard(invocation, chosen, job, destination)
    show_output_notes(invocation, destination, job)
    if invocation.settings.dry_run:
        show_run(invocation, target, job, destination, workers=shared)
        return
    for problem in listing.problems:
        invocation.console.error(problem)
    if target.plan is not None:
        report_warnings(invocation, target.plan)
    code = run(invocation, target.spec, job, destination, workers=shared)
    raise typer.Exit(EXIT_PARTIAL if code == EXIT_DONE and listing.problems else code)


def _target(invocation: Invocation, workers: Workers | None) -> CaptionTarget:
    """Return what captions; a server is asked whether it sees pictures."""
    if invocation.settings.server is not None:
        spec = served_spec(invocation)
        check_sight(invocation, spec)
        return CaptionTarget(spec, None)
    plan = workers.plans[0] if workers else plan_for(invocation)
    return CaptionTarget(plan.spec, plan)
