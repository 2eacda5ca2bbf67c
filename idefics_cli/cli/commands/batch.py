"""`idefics batch`: answers to a file of requests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idefics_cli.cli import options
from idefics_cli.cli.answer import show_server
from idefics_cli.cli.commands.caption.inputs import CaptionTarget
from idefics_cli.cli.commands.caption.outputs import STDOUT, output_path
from idefics_cli.cli.commands.caption.run import run
from idefics_cli.cli.invocation import Invocation, begin_command
from idefics_cli.cli.model_choice import (
    banned_words,
    image_limits,
    plan_for,
    report_warnings,
    sampling,
)
from idefics_cli.cli.reply_form import chosen_form
from idefics_cli.cli.server_choice import check_sight, served_spec
from idefics_cli.cli.stdin import tell_if_silent
from idefics_cli.config.settings import ANSWER_TOKENS
from idefics_cli.core.errors import EXIT_DONE, InputError, UsageError
from idefics_cli.core.sources import STDIN
from idefics_cli.core.units import counted
from idefics_cli.models.families.spec import find_family

if TYPE_CHECKING:
    from idefics_cli.caption.job import CaptionJob
    from idefics_cli.caption.output import CaptionOutput
    from idefics_cli.caption.requests.listing import RequestList
    from idefics_cli.caption.requests.run import RequestBatch
    from idefics_cli.engine.schema.form import ReplyForm

_MOST_NAMED_MODELS = 3

ImageFolder = Annotated[
    str | None,
    typer.Option(
        "--image-folder",
        metavar="DIR",
        help="Folder of the pictures that requests name by relative paths "
        "(default: that of REQUESTS)",
        rich_help_panel=options.IMAGES_PANEL,
        show_default=False,
    ),
]


def batch(
    context: typer.Context,
    requests: Annotated[
        str,
        typer.Argument(
            metavar="REQUESTS",
            help="File of requests, one JSON object a line; `-` is stdin.",
            show_default=False,
        ),
    ],
    image_folder: ImageFolder = None,
    batch_size: options.BatchSize = None,
    model: options.Model = None,
    server: options.Server = None,
    api_key_file: options.ServerKeyFile = None,
    revision: options.Revision = None,
    adapter: options.AdapterName = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.QuantizationName = None,
    attention: options.AttentionName = None,
    splitting: options.Splitting = None,
    longest_edge: options.LongestEdge = None,
    offline: options.Offline = None,
    threads: options.Threads = None,
    yes: options.Yes = None,
    system: options.System = None,
    schema: options.Schema = None,
    schema_prompt: options.SchemaPrompt = None,
    regex: options.Regex = None,
    choice: options.Choices = None,
    ban: options.Ban = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = None,
    max_pixels: options.MaxPixels = None,
    max_bytes: options.MaxBytes = None,
    timeout_seconds: options.TimeoutSeconds = None,
    truncated: options.Truncated = None,
    background: options.Background = None,
    output: options.AnswersOutput = None,
    overwrite: options.Overwrite = None,
    retry_failed: options.RetryFailed = None,
    failures: options.FailedRequests = None,
    fail_fast: options.FailFast = None,
    max_failures: options.MaxFailures = None,
    dry_run: options.DryRun = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Answer the requests of a file, one JSON line each.

    `idefics batch requests.jsonl -o answers.jsonl`

    A request is a line of an OpenAI batch, has `messages`, or has `prompt` and `images`. A request
    that fails gets a row with its error, and the exit code is then 3. The same command continues.
    """
    invocation = begin_command(context)
    form = chosen_form(
        invocation, schema=schema, regex=regex, choices=choice, default_tokens=ANSWER_TOKENS
    )
    banned = banned_words(ban or ())
    with _listed(invocation, requests, image_folder) as rows:
        raise typer.Exit(_answer(invocation, rows, _output(invocation), form, banned))


def _answer(
    invocation: Invocation,
    rows: RequestList,
    path: Path | None,
    form: ReplyForm | None,
    banned: tuple[str, ...],
) -> int:
    """Answer the requests in *rows*, and return the exit code."""
    from idefics_cli.caption.distinct_files import check_distinct
    from idefics_cli.caption.requests.run import RequestBatch
    from idefics_cli.caption.requests.shapes import Defaults

    source = None if rows.path is None else Path(rows.path)
    check_distinct({"the output": path, "the requests": source}, ())
    _destination(invocation, RequestBatch(rows, Defaults()), path).check_place()
    target = _target(invocation)
    settings, spec = invocation.settings, target.spec
    defaults = Defaults(
        sampling=sampling(settings, default_tokens=ANSWER_TOKENS),
        system=settings.system,
        chats=spec.chats,
        models=frozenset({spec.name, spec.repo, settings.model}),
        form=form,
        banned=banned,
    )
    asked = RequestBatch(rows, defaults)
    job = _job(invocation, asked, target)
    destination = _destination(invocation, asked, path, spec.name or spec.repo)
    if settings.dry_run:
        _show_run(invocation, target, asked, job, destination)
        return EXIT_DONE
    if target.plan is not None:
        report_warnings(invocation, target.plan)
    elif spec.server is not None and not spec.server.is_ours and asked.has_pictures():
        check_sight(invocation, spec)
    code = run(invocation, spec, job, destination, asked.kind)
    _tell_other_models(invocation, asked)
    return code


def _destination(
    invocation: Invocation, asked: RequestBatch, path: Path | None, model: str = ""
) -> CaptionOutput:
    settings = invocation.settings
    return asked.output(
        path,
        model,
        existing="overwrite" if settings.overwrite else "error",
        failures=output_path(settings.failures) if settings.failures else None,
    )


def _target(invocation: Invocation) -> CaptionTarget:
    if invocation.settings.server is not None:
        return CaptionTarget(served_spec(invocation), None)
    plan = plan_for(invocation)
    return CaptionTarget(plan.spec, plan)


def _listed(invocation: Invocation, source: str, folder: str | None) -> RequestList:
    from idefics_cli.caption.requests.listing import RequestList

    stdin = invocation.services.stdin
    if source == STDIN:
        if stdin is None or stdin.closed or stdin.isatty():
            raise UsageError(
                "`-` needs requests on stdin", hint="`idefics batch - <requests.jsonl`"
            )
        tell_if_silent(stdin, invocation.console, "the requests")
    if folder is not None and not os.path.isdir(folder):
        raise InputError(f"no folder `{folder}`", hint="`--image-folder` holds the pictures")
    rows = RequestList(source, stdin, folder=folder)
    if not rows:
        with rows:
            empty = "there are no requests on stdin"
            raise InputError(empty if source == STDIN else f"{rows.name} has no requests")
    return rows


def _output(invocation: Invocation) -> Path | None:
    from idefics_cli.caption.requests.run import EXTENSIONS
    from idefics_cli.caption.sinks.dataset import is_dataset

    name = invocation.settings.output
    if name == "":
        raise UsageError("the name of the output file is empty", hint="`-` is stdout")
    if name in (None, STDOUT):
        return None
    path = output_path(name)
    is_special = path.exists() and not path.is_file()
    if is_dataset(path):
        raise UsageError(
            f"`{path.name}` names the captions of a data set", hint="`-o answers.jsonl`"
        )
    if path.suffix and path.suffix.lower() not in EXTENSIONS and not is_special:
        raise UsageError(f"answers are JSON lines, not `{path.suffix}`", hint="`-o answers.jsonl`")
    return path


def _job(invocation: Invocation, asked: RequestBatch, target: CaptionTarget) -> CaptionJob:
    from idefics_cli.caption.job import automatic_readers
    from idefics_cli.hardware.system import count_cores

    settings = invocation.settings
    return asked.job(
        batch_size=settings.batch_size or target.automatic_batch(1),
        is_batch_automatic=settings.batch_size is None,
        readers=automatic_readers(target.spec.device, count_cores()),
        limits=image_limits(settings),
    )


def _show_run(
    invocation: Invocation,
    target: CaptionTarget,
    asked: RequestBatch,
    job: CaptionJob,
    output: CaptionOutput,
) -> None:
    """Print what a run would do; a request that would fail is an error on stderr."""
    from idefics_cli.caption.run import left_to_do
    from idefics_cli.ui.views.plan import render_plan

    console, settings = invocation.console, invocation.settings
    plan, spec = target.plan, target.spec
    todo = left_to_do(job, output, spec, kind=asked.kind, retry_failed=settings.retry_failed)
    is_for_videos = plan is not None and find_family(spec.family).takes_videos
    bad = 0
    with console.status("checking the requests"):
        for error in asked.unusable(
            todo.pictures, image_limits(settings), takes_videos=is_for_videos
        ):
            console.error(error)
            bad += 1
    if plan is None:
        show_server(invocation, spec)
    else:
        console.report(render_plan(plan))
    left = len(todo.pictures) - bad
    if left < len(job.pictures):
        console.line(f"left to answer: {left} of {counted(len(job.pictures), 'request')}")
    if bad:
        console.line(f"{counted(bad, 'request')} would fail")
    console.line(f"{counted(left, 'request')}, {job.batch_size} at a time")
    _tell_other_models(invocation, asked)


def _tell_other_models(invocation: Invocation, asked: RequestBatch) -> None:
    others = asked.source.other_models
    if not others:
        return
    names = [f"`{name}`" for name, _ in others.most_common(_MOST_NAMED_MODELS)]
    more = f" and {len(others) - len(names)} more" if len(others) > len(names) else ""
    count = others.total()
    what = "one request names" if count == 1 else f"{count} requests name"
    invocation.console.note(
        f"{what} another model ({', '.join(names)}{more}); `-m` decides which one answers"
    )
