"""Commands, options and arguments to complete, read from the Typer commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from idefics_cli.models.hub.registry import MODELS

Kind = Literal["models", "sessions", "pictures", "files", "folders", "words", "text"]

PROGRAM = "idefics"
PICTURE_ENDINGS = (
    "avif", "bmp", "gif", "heic", "heif", "jpeg", "jpg", "jp2", "png", "tif", "tiff", "webp",
    "mp4", "mov", "m4v", "mkv", "avi", "webm",
)  # fmt: skip
"""Extensions of pictures and videos; if no file has one of them, all files are offered."""

ANSWER = (
    "import sys; sys.path[:0] = sys.argv[3:]; "
    "from idefics_cli.completion.answers import run; run(sys.argv[1:3])"
)
"""The Python code that a script runs to ask for values.

Its arguments are the kind of the values, the beginning of the value, and the folder with the
package.
"""

_BY_METAVAR: dict[str, Kind] = {
    "FILE": "files",
    "REQUESTS": "files",
    "DIR": "folders",
    "PATH": "pictures",
    "SOURCE": "pictures",
    "ID": "sessions",
}


@dataclass(frozen=True, slots=True)
class Value:
    """The value of an option or argument.

    Attributes:
        kind: Where the possible values come from.
        name: The name of the value in the help, such as `FILE`.
        words: All possible values if the kind is `words`.
    """

    kind: Kind
    name: str
    words: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        """The kind as the scripts for bash and PowerShell write it: `words:a,b` has the words."""
        return f"words:{','.join(self.words)}" if self.kind == "words" else self.kind


@dataclass(frozen=True, slots=True)
class ShellOption:
    """An option of a command.

    Attributes:
        flags: All names, including the negative ones such as `--no-stream`.
        help: One line.
        value: Value of the option; None for a switch.
        repeats: Whether the option can be repeated.
    """

    flags: tuple[str, ...]
    help: str
    value: Value | None
    repeats: bool


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a command; only the last one can have *repeats*."""

    value: Value
    repeats: bool


@dataclass(frozen=True, slots=True)
class ShellCommand:
    """A command or a group of them.

    Attributes:
        path: The words that call the command, including the program.
        help: One line.
        options: Options, in the order of the help.
        arguments: Arguments, in order.
        commands: Commands of a group.
    """

    path: tuple[str, ...]
    help: str
    options: tuple[ShellOption, ...]
    arguments: tuple[Argument, ...]
    commands: tuple[ShellCommand, ...]

    def walk(self) -> Iterator[ShellCommand]:
        """Yield this command and all commands below it."""
        yield self
        for command in self.commands:
            yield from command.walk()


def read_commands(root: TyperGroup) -> ShellCommand:
    """Return the program with all its commands and options, except the hidden ones."""
    return _command(root, (PROGRAM,), None)


def _command(
    command: TyperCommand | TyperGroup, path: tuple[str, ...], parent: typer.Context | None
) -> ShellCommand:
    context = typer.Context(
        command, info_name=path[-1], parent=parent, **(command.context_settings or {})
    )
    options: list[ShellOption] = []
    arguments: list[Argument] = []
    for parameter in command.get_params(context):
        if isinstance(parameter, TyperArgument):
            value = _value(parameter, context)
            arguments.append(Argument(value, parameter.nargs == -1))
        elif isinstance(parameter, TyperOption) and not parameter.hidden:
            options.append(_option(parameter, context))
    below = [
        _command(child, (*path, name), context)
        for name, child in getattr(command, "commands", {}).items()
        if not child.hidden
    ]
    summary = _line(command.help)
    return ShellCommand(path, summary, tuple(options), tuple(arguments), tuple(below))


def _option(option: TyperOption, context: typer.Context) -> ShellOption:
    takes_none = option.is_flag or option.count
    return ShellOption(
        # Typer keeps the flags of `--help` in a set, whose order changes from run to run.
        flags=(*sorted(option.opts, key=_is_long), *option.secondary_opts),
        help=_line(option.help),
        value=None if takes_none else _value(option, context),
        repeats=option.multiple,
    )


def _is_long(flag: str) -> bool:
    return flag.startswith("--")


def _value(parameter: TyperOption | TyperArgument, context: typer.Context) -> Value:
    name = (parameter.metavar or parameter.name or "VALUE").strip("[]").upper()
    kind = "sessions" if parameter.name == "session" else _BY_METAVAR.get(name)
    if name == "PATH" and isinstance(parameter, TyperOption):
        kind = "files"  # an option with PATH names an output; paths of pictures are arguments
    if kind is not None:
        return Value(kind, name)
    words = tuple(item.value for item in parameter.shell_complete(context, ""))
    if words == tuple(MODELS):
        return Value("models", name)
    return Value("words", name, words) if words else Value("text", name)


def _line(text: str | None) -> str:
    """Return the first paragraph of *text* as one line, without a period at its end."""
    return " ".join((text or "").partition("\n\n")[0].split()).removesuffix(".")
