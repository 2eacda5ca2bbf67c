"""`idefics collect`: one output from the outputs of all shards of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idefics_cli.cli import options
from idefics_cli.cli.commands.caption.outputs import STDOUT, output_path
from idefics_cli.cli.invocation import Invocation, begin_command
from idefics_cli.core.errors import EXIT_DONE, EXIT_PARTIAL, IdeficsError, UsageError
from idefics_cli.core.units import counted

if TYPE_CHECKING:
    from idefics_cli.caption.collect.merge import Collected
    from idefics_cli.caption.collect.survey import ShardState, Survey

# At most this many shards that are not complete are listed on stderr; `--json` lists all.
_MOST_LISTED = 40

Whole = Annotated[
    str,
    typer.Argument(
        metavar="OUTPUT",
        help="The file that the tasks had as `-o`, without the number of a shard.",
        show_default=False,
    ),
]
Partial = Annotated[
    bool,
    typer.Option(
        "--partial",
        help="Write what is there, even if shards are not complete; the exit code is then 3.",
        rich_help_panel=options.OUTPUT_PANEL,
        show_default=False,
    ),
]


def collect(
    context: typer.Context,
    whole: Whole,
    output: options.CollectedOutput = None,
    format: options.Format = None,
    partial: Partial = False,
    overwrite: options.Overwrite = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Join the outputs of all shards of `idefics caption --shard` into one.

    `idefics collect captions.jsonl`

    The rows are those of one run without shards, in the same order. All shards must be complete and
    have equal settings. The files of the shards stay.
    """
    invocation = begin_command(context)
    raise typer.Exit(_collect(invocation, Path(whole), is_partial=partial))


def _collect(invocation: Invocation, whole: Path, *, is_partial: bool) -> int:
    from idefics_cli.caption.collect.merge import check_output, write_collected
    from idefics_cli.caption.collect.survey import survey_shards

    console, settings = invocation.console, invocation.settings
    # The output of captioning runs may be a setting, but it is not the output of this command.
    is_named = invocation.resolved.origins["output"].source == "flag"
    name = settings.output if is_named and settings.output else str(whole)
    if name == STDOUT:
        raise UsageError("`idefics collect` writes a file", hint="`-o merged.jsonl`")
    output = output_path(name)
    _check_whole(whole)
    _check_not_shard(output, whole)
    check_output(output, overwrite=settings.overwrite)
    with console.status(f"reading the journals of {whole}"):
        survey = survey_shards(whole)
    _show_unfit(invocation, survey)
    if survey.wrong or (survey.unfit and not is_partial):
        if settings.json:
            console.json(_fields(survey, output, None))
        raise _not_complete(survey)
    total = survey.pictures
    with console.status(f"writing {output}") as progress:
        collected = write_collected(
            survey,
            output,
            _format(invocation, survey, output),
            on_row=lambda done: progress(f"writing {output}", done / max(1, total)),
        )
    _show_end(invocation, survey, output, collected)
    return EXIT_PARTIAL if survey.unfit or collected.failed else EXIT_DONE


def _check_whole(whole: Path) -> None:
    from idefics_cli.caption.resume.run_files import RunFiles
    from idefics_cli.caption.shards.shard import Shard

    found = Shard.with_whole(whole)
    if found is not None and RunFiles.beside(whole).journal.exists():
        shard, run = found
        raise UsageError(
            f"`{whole}` is the output of the shard {shard} alone",
            hint=f"`idefics collect {run}` joins all shards",
        )


def _check_not_shard(output: Path, whole: Path) -> None:
    from idefics_cli.caption.shards.shard import Shard

    shard = Shard.of_name(output.name, whole)
    if shard is not None and output.resolve().parent == whole.resolve().parent:
        raise UsageError(
            f"`{output}` is the output of the shard {shard}", hint=f"`-o {whole}`, or another file"
        )


def _format(invocation: Invocation, survey: Survey, output: Path) -> str:
    """Return the format of the output: as chosen, else that of the shards or of its name."""
    from idefics_cli.caption.sinks import SINKS, format_for

    chosen, former = invocation.settings.format, str(survey.settings.get("format"))
    if chosen is None:
        is_named_so = output.suffix == survey.whole.suffix and former in SINKS
        chosen = former if is_named_so else format_for(output)
    if SINKS[chosen].output == "folder":
        raise UsageError(
            f"`--format {chosen}` writes a file for each picture, not one file",
            hint="`--format jsonl`, or another format of one file",
        )
    return chosen


def _show_unfit(invocation: Invocation, survey: Survey) -> None:
    console, unfit = invocation.console, survey.unfit
    for state in unfit[:_MOST_LISTED]:
        console.tell(f"shard {state.shard}  {state.state:<10}  {_reason(state)}")
    if len(unfit) > _MOST_LISTED:
        console.tell(f"and {counted(len(unfit) - _MOST_LISTED, 'other shard')}")
    seen = sorted({state.listed for state in survey.shards if state.state == "complete"})
    if len(seen) > 1:
        console.note(
            f"the tasks found from {seen[0]} to {counted(seen[-1], 'picture')}, because files "
            "changed between them; to caption new files, run all tasks again"
        )


def _reason(state: ShardState) -> str:
    named = f"`{state.journal}`"
    return state.reason if named in state.reason else f"{named}: {state.reason}"


def _not_complete(survey: Survey) -> IdeficsError:
    count = len(survey.shards)
    if survey.wrong:
        return IdeficsError(
            f"{_named(survey.wrong)} of {count} cannot be joined with the others",
            hint="move their files away, and run these shards again with the settings of the "
            "others",
        )
    first = survey.unfit[0].shard
    return IdeficsError(
        f"{_named(survey.unfit)} of {count} {'is' if len(survey.unfit) == 1 else 'are'} not "
        "complete",
        hint=f"run the same command with `--shard {first}`, or collect what is there with "
        "`--partial`",
    )


def _named(states: tuple[ShardState, ...]) -> str:
    numbers = ", ".join(str(state.shard.index) for state in states[:_MOST_LISTED])
    more = ", …" if len(states) > _MOST_LISTED else ""
    return f"shard{'' if len(states) == 1 else 's'} {numbers}{more}"


def _show_end(invocation: Invocation, survey: Survey, output: Path, collected: Collected) -> None:
    console = invocation.console
    if invocation.settings.json:
        console.json(_fields(survey, output, collected))
    count = len(survey.shards)
    there = f"{count - len(survey.unfit)} of {count}" if survey.unfit else f"{count}"
    failed = f", {collected.failed} failed" if collected.failed else ""
    console.tell(
        f"collected {counted(collected.pictures, 'picture')} from {there} shards into `{output}`"
        f"{failed}"
    )
    if collected.failures is not None:
        console.note(f"`{collected.failures}` lists what failed")


def _fields(survey: Survey, output: Path, collected: Collected | None) -> dict[str, object]:
    return {
        "output": None if collected is None else str(output),
        "pictures": 0 if collected is None else collected.pictures,
        "failed": 0 if collected is None else collected.failed,
        "shards": len(survey.shards),
        "unfit": [
            {
                "shard": str(s.shard),
                "state": s.state,
                "reason": s.reason,
                "pictures": len(s.offsets),
            }
            for s in survey.unfit
        ],
    }
