"""`--print-job`: the script that lets a scheduler run all shards of this command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from idefics_cli.cli.commands.caption.inputs import Inputs
from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import UsageError
from idefics_cli.core.sources import STDIN, is_clipboard
from idefics_cli.core.text import or_list

if TYPE_CHECKING:
    from idefics_cli.caption.output import CaptionOutput

# Parameters that are not in the command of a task.
_LEFT_OUT = frozenset({"print_job", "shard", "dry_run"})


def show_job(
    invocation: Invocation,
    context: typer.Context,
    given: Inputs,
    output: CaptionOutput,
    scheduler: str,
) -> None:
    """Print a script for *scheduler*, a key of `JOB_SCRIPTS`, whose tasks run the command.

    Raises:
        UsageError: If there is no such scheduler, or the command cannot be divided.
    """
    from idefics_cli.caption.shards.job_scripts import JOB_SCRIPTS, ShardedCommand
    from idefics_cli.caption.shards.shard import Shard

    if scheduler not in JOB_SCRIPTS:
        raise UsageError(f"--print-job must be {or_list([*JOB_SCRIPTS])}, not `{scheduler[:60]}`")
    _, _, number = (invocation.settings.shard or "").partition("/")
    if not number:
        raise UsageError(
            "--print-job needs the number of shards", hint="`--shard auto/16` makes 16 tasks"
        )
    shard = Shard(0, int(number[:99]))
    readers = [*given.paths, *given.lists, given.prompt_file]
    if any(source is not None and (source == STDIN or is_clipboard(source)) for source in readers):
        raise UsageError("the tasks of a job have no stdin and no clipboard", hint="name files")
    output.of_shard(shard)
    settings = invocation.settings
    # Nothing is downloaded, and no GPU is needed.
    is_light = settings.server is not None or settings.model == "demo"
    command = ShardedCommand(
        [*_words(context), "--shard", f"auto/{shard.count}", *_arguments(given)],
        shard.count,
        os.getcwd(),
        None if output.sink.output == "folder" else str(output.path),
        "" if is_light else settings.model,
        0 if is_light else _count_gpus(settings.device, settings.devices),
    )
    invocation.console.data(JOB_SCRIPTS[scheduler](command))


def _count_gpus(device: str, devices: str | None) -> int:
    if devices is not None and devices != "all":
        return sum(part.startswith("cuda") for part in devices.split(","))
    return 1 if device.startswith(("auto", "cuda")) else 0


def _words(context: typer.Context) -> Iterator[str]:
    """Yield the command and its options as words, in their long forms."""
    yield from context.command_path.split()
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        if name in _LEFT_OUT or parameter.param_type_name != "option" or value is None:
            continue
        flag = max(parameter.opts, key=len)
        if value is True:
            yield flag
        elif value is False:
            yield from parameter.secondary_opts[:1]
        elif isinstance(value, list | tuple):
            for each in value:
                yield f"{flag}={each}"
        else:
            yield f"{flag}={value}"


def _arguments(given: Inputs) -> list[str]:
    return ["--", *given.paths] if given.paths else []
