"""`idefics models`: list, download, find and quantize models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idefics_cli.cli import options
from idefics_cli.cli.help.groups import HelpCommand, HelpGroup
from idefics_cli.cli.invocation import Invocation, begin_command
from idefics_cli.cli.model_choice import find_facts, with_base_model
from idefics_cli.core.errors import ModelError, PlanError, UsageError
from idefics_cli.core.files import check_new_folder
from idefics_cli.core.paths import display_path, quantized_folder, verdict_folder
from idefics_cli.core.types import LoadSpec
from idefics_cli.core.units import format_parameters, format_size
from idefics_cli.models.hub.registry import DEMO, MODELS, ModelSpec

if TYPE_CHECKING:
    from idefics_cli.models.hub.facts import ModelFacts
    from idefics_cli.models.planning.plan import Machine, Plan

app = typer.Typer(cls=HelpGroup)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Name from `idefics models`, or Hub id `owner/name`.",
        autocompletion=options.complete_model,
    ),
]


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    json: options.Json = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """List the models: size, download, and how each would run here."""
    if context.invoked_subcommand is not None:
        return
    invocation = begin_command(context)
    with invocation.console.status("checking this machine"):
        machine = invocation.services.probe()
        rows = [_row(invocation, spec, machine) for spec in MODELS.values()]
    if invocation.settings.json:
        invocation.console.json([_record(row) for row in rows])
    else:
        _show(invocation, rows)


@app.command(cls=HelpCommand)
def pull(
    context: typer.Context,
    name: Name,
    revision: options.Revision = None,
    offline: options.Offline = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Download a model into the Hugging Face cache, and print its folder.

    An interrupted download continues where it stopped.
    """
    from idefics_cli.models.hub.download import pull as fetch

    invocation = begin_command(context)
    facts = _facts(invocation, name)
    if facts.repo == DEMO:
        invocation.console.note("the model `demo` is built in and needs no download")
    elif _is_local(facts):
        raise ModelError(f"`{name}` is a local folder and needs no download")
    else:
        settings = invocation.settings
        with invocation.console.status(f"downloading {facts.name}") as progress:
            folder = fetch(facts.repo, settings.revision, offline=settings.offline, report=progress)
        invocation.console.line(str(folder))
        return
    invocation.console.line(str(facts.folder))


@app.command(cls=HelpCommand)
def path(
    context: typer.Context,
    name: Name,
    revision: options.Revision = None,
    quiet: options.Quiet = None,
) -> None:
    """Print the folder of a downloaded model."""
    from idefics_cli.models.hub.cache import cache_root
    from idefics_cli.models.hub.facts import find_folder

    invocation = begin_command(context)
    folder = find_folder(name, invocation.settings.revision)
    if folder is None:
        raise ModelError(
            f"`{name}` is not in the cache ({display_path(cache_root())})",
            hint=f"`idefics models pull {name}` downloads it",
        )
    invocation.console.line(str(folder))


@app.command(cls=HelpCommand)
def quantize(
    context: typer.Context,
    name: Name,
    revision: options.Revision = None,
    quantization: options.QuantizationName = None,
    dtype: options.Dtype = None,
    offline: options.Offline = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the stored weights of this model.")
    ] = False,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Quantize a model for the CPU and store the weights, so that it starts in seconds.

    Large models are stored automatically at their first run in 4bit or 8bit on a CPU.
    """
    invocation = begin_command(context)
    facts = _facts(invocation, name)
    if remove:
        _remove_quantized(invocation, facts)
    else:
        _quantize(invocation, facts)


@app.command(cls=HelpCommand)
def merge(
    context: typer.Context,
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="Folder or Hub id of a LoRA adapter.")
    ],
    output: options.MergedFolder = None,
    model: options.AdapterBase = None,
    revision: options.Revision = None,
    offline: options.Offline = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Write a model with an adapter in its weights, which needs no adapter any more.

    `-m` takes the folder, and so does transformers.
    """
    invocation = begin_command(context)
    folder = invocation.settings.output
    if not folder:
        raise UsageError("a folder for the model is missing", hint="`-o FOLDER`")
    check_new_folder(Path(folder))
    from idefics_cli.models.loading.merging import write_merged
    from idefics_cli.models.planning.trained import unfinished

    chosen = _with_adapter(invocation, adapter)
    facts = find_facts(chosen)
    if facts.adapter is None:
        raise ModelError(f"`{adapter}` is no adapter", hint="name its folder or Hub id")
    if facts.folder is None:
        name = facts.repo
        raise ModelError(f"`{name}` is not downloaded", hint=f"`idefics models pull {name}` first")
    if warning := unfinished(facts):
        invocation.console.warn(warning)
    spec = LoadSpec(facts.repo, facts.family, name=facts.name, adapter=facts.adapter)
    with invocation.console.status(f"merging {facts.name}") as progress:
        write_merged(spec, facts.folder, Path(folder).absolute(), report=progress)
    invocation.console.line(folder)


def _with_adapter(invocation: Invocation, adapter: str) -> Invocation:
    settings = replace(invocation.settings, adapter=adapter)
    resolved = replace(invocation.resolved, settings=settings)
    return with_base_model(replace(invocation, resolved=resolved))


def _remove_quantized(invocation: Invocation, facts: ModelFacts) -> None:
    from idefics_cli.models.loading.quantized_store import remove_stored

    freed = remove_stored(quantized_folder(invocation.services.environ), facts.repo)
    note = f"{format_size(freed)} freed" if freed else "no weights were stored"
    invocation.console.note(note)


def _quantize(invocation: Invocation, facts: ModelFacts) -> None:
    from idefics_cli.models.loading.loader import keep_quantized
    from idefics_cli.models.planning.plan import PlanChoices, make_plan
    from idefics_cli.models.planning.verdicts import read_verdicts

    settings, root = invocation.settings, quantized_folder(invocation.services.environ)
    method = "4bit" if settings.quantization in (None, "auto") else settings.quantization
    choices = PlanChoices(
        device="cpu",
        quantization=method,
        dtype=settings.dtype,
        revision=settings.revision,
        offline=settings.offline,
    )
    with invocation.console.status("starting"):
        machine = invocation.services.probe()
        verdicts = read_verdicts(verdict_folder(invocation.services.environ), machine)
        machine = verdicts.with_speeds(machine)
        plan = make_plan(facts, choices, machine, faults=verdicts.faults)
    with invocation.console.status(f"quantizing {facts.name}") as progress:
        spec = replace(plan.spec, quantized_folder=str(root))
        folder = keep_quantized(spec, report=progress)
    invocation.console.line(str(folder))


@dataclass(frozen=True, slots=True)
class _Row:
    spec: ModelSpec
    facts: ModelFacts
    size_bytes: int
    quantized_bytes: int
    plan: Plan | None
    problem: PlanError | None


def _row(invocation: Invocation, spec: ModelSpec, machine: Machine) -> _Row:
    from idefics_cli.models.hub.cache import size_on_disk
    from idefics_cli.models.loading.quantized_store import list_stored
    from idefics_cli.models.planning.plan import PlanChoices, make_plan
    from idefics_cli.models.planning.verdicts import read_verdicts

    facts = invocation.services.find_facts(spec.name, revision=None, offline=True)
    verdicts = read_verdicts(verdict_folder(invocation.services.environ), machine)
    machine = verdicts.with_speeds(machine)
    entries = list_stored(quantized_folder(invocation.services.environ))
    kept = [entry.size_bytes for entry in entries if entry.repo == facts.repo]
    size = 0 if facts.folder is None else size_on_disk(facts.folder)
    try:
        plan = make_plan(facts, PlanChoices(), machine, faults=verdicts.faults)
        return _Row(spec, facts, size, sum(kept), plan, None)
    except PlanError as error:
        return _Row(spec, facts, size, sum(kept), None, error)


def _facts(invocation: Invocation, name: str) -> ModelFacts:
    settings = invocation.settings
    return invocation.services.find_facts(
        name, revision=settings.revision, offline=settings.offline
    )


def _is_local(facts: ModelFacts) -> bool:
    return facts.folder is not None and facts.repo == str(facts.folder)


def _show(invocation: Invocation, rows: list[_Row]) -> None:
    from idefics_cli.ui.views.plan import align_columns

    cells = [("NAME", "WEIGHTS", "DOWNLOAD", "HERE", "")]
    for row in rows:
        # A column for this size would leave too little room on a narrow terminal.
        kept = f"; {format_size(row.quantized_bytes)} quantized" if row.quantized_bytes else ""
        kind = "" if row.spec.chats else "; a base model"
        cells.append(
            (
                row.spec.name,
                format_parameters(row.spec.parameters),
                _download(row),
                _way(row.plan),
                row.spec.summary + kind + kept,
            )
        )
    for line in align_columns(cells):
        invocation.console.report(line.removeprefix("  "))


def _download(row: _Row) -> str:
    if row.spec.name == DEMO:
        return "built in"
    if row.facts.folder is not None:
        return f"done: {format_size(row.size_bytes)}"
    size = row.facts.download_bytes
    return "unknown" if size is None else format_size(size)


def _way(plan: Plan | None) -> str:
    if plan is None:
        return "too large"
    spec = plan.spec
    device = spec.device if spec.device_map is None else "+".join(n.device for n in plan.needs)
    precision = spec.dtype if spec.quantization == "none" else spec.quantization
    return f"{device} {precision}"


def _record(row: _Row) -> dict[str, object]:
    spec, plan = row.spec, row.plan
    return {
        "name": spec.name,
        "repo": spec.repo,
        "family": spec.family,
        "parameters": spec.parameters,
        "context_tokens": spec.context_tokens,
        "chats": spec.chats,
        "instruct": spec.instruct,
        "summary": spec.summary,
        "cached": row.facts.folder is not None,
        "size_bytes": row.size_bytes,
        "quantized_bytes": row.quantized_bytes,
        "download_bytes": row.facts.download_bytes,
        "fits": plan is not None,
        "device": plan.spec.device if plan else None,
        "dtype": plan.spec.dtype if plan else None,
        "quantization": plan.spec.quantization if plan else None,
        "needed_bytes": sum(need.total for need in plan.needs) if plan else None,
        "problem": str(row.problem) if row.problem else None,
    }
