"""What somebody meant who typed a word that is no command, and what to type at first."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from typer.core import TyperCommand, TyperGroup

from idefics_cli import __version__
from idefics_cli.cli.help.plain_help import is_needed, use_legible_styles, write_help
from idefics_cli.config.settings import setting_table
from idefics_cli.core.errors import UsageError
from idefics_cli.models.hub.registry import MODELS

# Words of other tools, and of people, by the command after which they were typed.
_MEANT: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "idefics": {
            "describe": "`idefics caption PICTURES`",
            "captions": "`idefics caption PICTURES`",
            "tag": "`idefics caption PICTURES`",
            "label": "`idefics caption PICTURES`",
            "batch": "`idefics caption PICTURES`",
            "question": "`idefics ask QUESTION`",
            "prompt": "`idefics ask QUESTION`",
            "query": "`idefics ask QUESTION`",
            "generate": "`idefics ask QUESTION`",
            "run": "`idefics chat -m MODEL`",
            "talk": "`idefics chat`",
            "repl": "`idefics chat`",
            "shell": "`idefics chat`",
            "pull": "`idefics models pull MODEL`",
            "download": "`idefics models pull MODEL`",
            "install": "`idefics models pull MODEL`",
            "model": "`idefics models`",
            "list": "`idefics models`",
            "ls": "`idefics models`",
            "history": "`idefics sessions`",
            "chats": "`idefics sessions`",
            "resume": "`idefics chat -c`",
            "continue": "`idefics chat -c`",
            "settings": "`idefics config`",
            "set": "`idefics config`",
            "version": "`idefics --version`",
            "status": "`idefics doctor`",
            "check": "`idefics doctor`",
            "info": "`idefics doctor`",
            "benchmark": "`idefics bench`",
            "completions": "`idefics completion`",
            "test": "`idefics doctor`",
            "export": "`idefics sessions export NAME`",
            "login": "`hf auth login`, for models that ask for it",
            "update": "`pip install --upgrade idefics-cli`",
            "upgrade": "`pip install --upgrade idefics-cli`",
            "uninstall": "`pip uninstall idefics-cli`",
            "quit": "this is no prompt of ours; `idefics chat` begins one",
            "exit": "this is no prompt of ours; `idefics chat` begins one",
        },
        "idefics models": {
            "list": "`idefics models`",
            "ls": "`idefics models`",
            "show": "`idefics doctor -m MODEL`",
            "info": "`idefics doctor -m MODEL`",
            "download": "`idefics models pull MODEL`",
            "install": "`idefics models pull MODEL`",
            "get": "`idefics models pull MODEL`",
            "where": "`idefics models path MODEL`",
            "rm": "`hf cache rm model/OWNER/ID`; other tools share that cache",
            "remove": "`hf cache rm model/OWNER/ID`; other tools share that cache",
            "delete": "`hf cache rm model/OWNER/ID`; other tools share that cache",
        },
        "idefics config": {
            "list": "`idefics config`",
            "show": "`idefics config`",
            "get": "`idefics config`",
            "set": "`idefics config path` names the file to edit",
            "edit": '`"$EDITOR" "$(idefics config path)"`',
        },
        "idefics sessions": {
            "ls": "`idefics sessions list`",
            "delete": "`idefics sessions rm NAME`",
            "remove": "`idefics sessions rm NAME`",
            "clear": "`idefics sessions prune`",
            "open": "`idefics chat --session NAME`",
            "resume": "`idefics chat --session NAME`",
        },
    }
)


class GuidingGroup(TyperGroup):
    """Commands that answer a word they do not know with what was probably meant."""

    # Any: the classes of the context and of the command are public in some versions only.
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the subcommand *cmd_name*, with help that fits the terminal."""
        command: Any = super().get_command(ctx, cmd_name)
        if command is not None and not isinstance(command, GuidingGroup):
            command.format_help = partial(_show_help, command)
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write what `--help` tells."""
        _show_help(self, ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the subcommand of *args*.

        Raises:
            UsageError: If there is none, and a guess can be made.
        """
        word = args[0]
        if self.get_command(ctx, word) is None and not word.startswith("-"):
            hint = guess(str(ctx.command_path), args, self.list_commands(ctx))
            if hint:
                raise UsageError(f"there is no command `{word}`", hint=hint)
        return super().resolve_command(ctx, args)


def _show_help(command: Any, ctx: Any, formatter: Any) -> None:
    if is_needed():
        write_help(command, ctx, formatter)
        return
    use_legible_styles()
    # Typer 0.29 gives it a type, which nobody else's `--help` has.
    if (option := command.get_help_option(ctx)) is not None:
        option.metavar = ""
    super_of = TyperGroup if isinstance(command, TyperGroup) else TyperCommand
    super_of.format_help(command, ctx, formatter)


def guess(group: str, words: Sequence[str], commands: Sequence[str]) -> str | None:
    """Return what to type instead of *words*, or None if nothing comes to mind.

    Args:
        group: The command that was understood, as "idefics models".
        words: What follows it; the first is none of *commands*.
        commands: That may follow it.
    """
    word = words[0]
    if meant := _MEANT.get(group, {}).get(word.lower()):
        return _filled(meant, words[1:])
    if near := difflib.get_close_matches(word.lower(), commands, n=1, cutoff=0.6):
        return f"did you mean `{' '.join([group, near[0], *words[1:]])}`?"
    if group == "idefics":
        return _meant_input(words)
    return _meant_model(group, word) or _meant_setting(group, word)


def _filled(hint: str, rest: Sequence[str]) -> str:
    """Return *hint* with what was typed in the place of its word in capitals."""
    if not rest:
        return hint
    return re.sub("MODEL|PICTURES|NAME|QUESTION", lambda _: shlex.join(rest), hint)


def _meant_input(words: Sequence[str]) -> str | None:
    first = words[0]
    files = [word for word in words if os.path.exists(word)]
    if re.match(r"https?://", first, re.IGNORECASE):
        return f'`idefics ask "What is in it?" -i {shlex.quote(first)}`'
    if re.search(r"[*?[]\S*\.\w+$", first):
        return f"no picture matches `{first}` here; `idefics caption FOLDER` takes all of a folder"
    if os.path.isdir(first):
        return f"`idefics caption {shlex.quote(first)}` captions the pictures in it"
    if os.path.isfile(first):
        return (
            f'`idefics ask "What is in it?" -i {shlex.quote(first)}`, '
            f"or `idefics caption {shlex.join(files)}`"
        )
    if first in MODELS or first.count("/") == 1:
        return f"`idefics chat -m {shlex.quote(first)}`"
    if " " in first or first.endswith("?"):
        pictures = files or ["PICTURE"]
        images = " ".join(f"-i {shlex.quote(picture)}" for picture in pictures)
        return f"`idefics ask {shlex.quote(first)} {images}`"
    return None


def _meant_model(group: str, word: str) -> str | None:
    if group == "idefics models" and (word in MODELS or word.count("/") == 1):
        return f"`idefics models pull {word}` downloads it, `idefics doctor -m {word}` describes it"
    return None


def _meant_setting(group: str, word: str) -> str | None:
    name = word.partition("=")[0]
    if group == "idefics config" and name.replace("-", "_") in setting_table():
        return f"`idefics config` shows `{name}`; `idefics config path` names the file to edit"
    if group == "idefics completion" and word in ("bash", "zsh", "fish", "powershell"):
        return f"`idefics completion install {word}`"
    return None


def overview() -> str:
    """Return what somebody sees who types `idefics` and nothing else."""
    return f"""\
idefics {__version__}: ask about pictures and caption them, on this machine

Try it with the built-in model, which knows drawn scenes only:
  idefics demo pictures                            draw some
  idefics caption pictures -m demo                 caption them
  idefics chat -m demo -i pictures/scene-001.png   talk about one

With a model for photos, which the first use downloads:
  idefics ask "What is in it?" -i photo.jpg
  idefics caption photos/ -r -o captions.jsonl

`idefics models` lists the models, `idefics doctor` tells what runs here, and
`idefics --help` the rest."""
