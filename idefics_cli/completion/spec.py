"""What there is to complete, read from the commands themselves."""

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
)  # fmt: skip
"""Of the pictures that people have; any file is completed where no name has one of these."""

ANSWER = (
    "import sys; sys.path[:0] = sys.argv[3:]; "
    "from idefics_cli.completion.answers import run; run(sys.argv[1:3])"
)
"""What Python does to answer a shell: given the kind, the beginning, and the folder of packages."""

_BY_METAVAR: dict[str, Kind] = {
    "FILE": "files",
    "DIR": "folders",
    "PATH": "pictures",
    "SOURCE": "pictures",
    "ID": "sessions",
}


@dataclass(frozen=True, slots=True)
class Value:
    """What an option or argument takes.

    Attributes:
        kind: Where the values come from.
        name: The metavar, for people.
        words: Every value, of the kind `words`.
    """

    kind: Kind
    name: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ShellOption:
    """An option of a command.

    Attributes:
        flags: All its spellings, also those that switch it off.
        help: One line.
        value: None for a switch.
        repeats: Whether it may be given again.
    """

    flags: tuple[str, ...]
    help: str
    value: Value | None
    repeats: bool


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a command; *repeats* only of the last one."""

    value: Value
    repeats: bool


@dataclass(frozen=True, slots=True)
class ShellCommand:
    """A command or a group of them.

    Attributes:
        path: The words that call it, from the program on.
        help: One line.
        options: In the order of its help.
        arguments: In order.
        commands: Of a group.
    """

    path: tuple[str, ...]
    help: str
    options: tuple[ShellOption, ...]
    arguments: tuple[Argument, ...]
    commands: tuple[ShellCommand, ...]

    def walk(self) -> Iterator[ShellCommand]:
        """Yield this command and all below it."""
        yield self
        for command in self.commands:
            yield from command.walk()


def read_commands(root: TyperGroup) -> ShellCommand:
    """Return all that can be typed after the name of the program; hidden things are left out."""
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
        # Sorted, as Click has those for help in a set.
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
        kind = "files"  # where the output goes; paths of pictures are arguments
    if kind is not None:
        return Value(kind, name)
    words = tuple(item.value for item in parameter.shell_complete(context, ""))
    if words == tuple(MODELS):
        return Value("models", name)
    return Value("words", name, words) if words else Value("text", name)


def _line(text: str | None) -> str:
    """Return the first paragraph of *text* on one line, without a final period."""
    return " ".join((text or "").partition("\n\n")[0].split()).removesuffix(".")
