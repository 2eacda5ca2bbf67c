"""`idefics completion`: print or install the completion script of a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from idefics_cli.cli import options
from idefics_cli.cli.help.groups import HelpCommand, HelpGroup
from idefics_cli.cli.invocation import begin_command
from idefics_cli.core.errors import UsageError

if TYPE_CHECKING:
    from idefics_cli.completion.scripts import Shell

app = typer.Typer(cls=HelpGroup)

_SHELLS = ("bash", "zsh", "fish", "powershell")

ShellName = Annotated[
    str,
    typer.Argument(
        metavar="SHELL",
        help="bash, zsh, fish or powershell.",
        autocompletion=lambda: list(_SHELLS),
    ),
]
DryRun = Annotated[bool | None, options.dry_run("Print the path of the file, and do not write it.")]


@app.callback(invoke_without_command=True)
def completion(context: typer.Context) -> None:
    """Set up the completion of commands, options, models and pictures with TAB."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(cls=HelpCommand)
def show(context: typer.Context, shell: ShellName, quiet: options.Quiet = None) -> None:
    """Print the script for a shell.

    `source <(idefics completion show bash)`
    """
    invocation = begin_command(context)
    invocation.console.data(_script(context, _find(shell)))


@app.command(cls=HelpCommand)
def install(
    context: typer.Context,
    shell: ShellName,
    dry_run: DryRun = None,
    quiet: options.Quiet = None,
) -> None:
    """Write the script into your folder of completions, and print the next step.

    No other file is changed, such as `~/.bashrc`.
    """
    from idefics_cli.completion.scripts import install as write

    invocation = begin_command(context)
    console, is_trial = invocation.console, invocation.settings.dry_run
    chosen = _find(shell)
    path = chosen.place(invocation.services.environ)
    is_new = write(path, _script(context, chosen), dry_run=is_trial)
    if not is_new:
        console.tell("the file is already there and up to date")
    elif is_trial:
        console.tell("would write this file:")
    console.line(str(path))
    for line in chosen.next_step.format(path=path, folder=path.parent).split("\n"):
        console.tell(line)


def _find(name: str) -> Shell:
    from idefics_cli.completion.scripts import SHELLS

    try:
        return SHELLS[{"pwsh": "powershell"}.get(name, name)]
    except KeyError:
        raise UsageError(
            f"no completion for the shell `{name}`", hint="choose bash, zsh, fish or powershell"
        ) from None


def _script(context: typer.Context, shell: Shell) -> str:
    from idefics_cli.completion.spec import read_commands

    root = context.find_root().command
    if not isinstance(root, TyperGroup):
        raise TypeError("the root command is a group")
    return shell.render(read_commands(root))
