"""The root command: its options, and the conversion of errors to messages."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from idefics_cli import __version__
from idefics_cli.cli.help.groups import HelpGroup
from idefics_cli.cli.help.option_suggestions import (
    check_dashes,
    suggest_for_words,
    suggest_option,
)
from idefics_cli.cli.help.overview import overview
from idefics_cli.cli.invocation import CONSOLE, services_of
from idefics_cli.cli.services import Services
from idefics_cli.core.errors import IdeficsError, InputError, UsageError
from idefics_cli.ui.terminal.console import Console

# These errors mean that the disk is full or fails. EPIPE, which means that the reader has closed
# the pipe, is missing because Typer handles it.
_UNWRITABLE = frozenset(
    {errno.EBADF, errno.ENOSPC, errno.EIO, errno.EFBIG, getattr(errno, "EDQUOT", -1)}
)


_MOST_SHOWN = 60  # characters of a name that is too long


class RootGroup(HelpGroup):
    """The root command, which reports an error as a message, a hint and an exit code."""

    # Any: `TyperGroup.main` declares these types.
    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run the command and exit; *standalone_mode* is ignored."""
        words = list(sys.argv[1:] if args is None else args)
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        try:
            check_dashes(words)
            # The base class gets False for *standalone_mode*. It then raises usage errors instead
            # of printing them.
            code = super().main(words, prog_name, complete_var, False, windows_expand_args, **extra)
        except IdeficsError as error:
            sys.exit(_report(error, extra.get("obj")))
        except typer.TyperException as error:
            sys.exit(_report(_usage_error(error, words=words), extra.get("obj")))
        except OSError as error:
            # This error reaches this place only while Typer writes a help page or the version. Our
            # commands turn errors of the output into an `IdeficsError`.
            if error.errno not in _UNWRITABLE:
                raise
            failure = IdeficsError(f"cannot write the output: {error.strerror}")
            sys.exit(_report(failure, extra.get("obj")))
        sys.exit(code if isinstance(code, int) else 0)

    def owners(self, option: str) -> Sequence[str]:
        """Return the commands that have *option*, such as "idefics ask", in order."""
        return [
            f"idefics {name}"
            for name, command in self.commands.items()
            if any(option in each.opts + each.secondary_opts for each in command.params)
        ]

    # Any: the base class declares a context that Typer does not export.
    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; if a usage error lacks the name of the command, add it."""
        try:
            return super().invoke(ctx)
        except IdeficsError as error:
            sys.exit(_report(error, ctx.obj, ctx.meta.get(CONSOLE)))
        except OSError as error:
            # Looking for a file fails, instead of finding none, if its name is too long.
            if error.errno != errno.ENAMETOOLONG:
                raise
            failure = InputError(f"`{str(error.filename)[:_MOST_SHOWN]}…`: the name is too long")
            sys.exit(_report(failure, ctx.obj, ctx.meta.get(CONSOLE)))
        except typer.TyperException as error:
            if getattr(error, "ctx", None) is not None or not ctx.invoked_subcommand:
                raise
            raise _usage_error(error, f"{ctx.command_path} {ctx.invoked_subcommand}") from error


def _report(error: IdeficsError, services: object, console: Console | None = None) -> int:
    environ = services.environ if isinstance(services, Services) else os.environ
    # The console of the command is preferred, because it knows the settings of the user.
    (console or Console(sys.stdout, sys.stderr, environ=environ)).error(error)
    try:
        sys.stdout.flush()
    except OSError:
        # At the exit, Python would flush stdout again, fail again and replace our exit code. So
        # stdout is replaced by a stream that does not fail.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (stays open to the end)
    return error.exit_code


def _usage_error(
    error: Exception, command: str = "idefics", words: Sequence[str] = ()
) -> UsageError:
    """Turn *error* of Typer into a `UsageError` with a message and a hint.

    Args:
        error: Any usage error of Typer.
        command: The name of the command, if *error* does not know it.
        words: All words after `idefics`, if they are known.
    """
    message = str(getattr(error, "format_message", error.__str__)()).removesuffix(".")
    message, guess, rest = message.partition(". Did you mean ")
    context: typer.Context | None = getattr(error, "ctx", None)
    hint = f"`{context.command_path if context else command} --help` shows the usage"
    if context and (extra := re.search(r"unexpected extra argument.*\((.*)\)", message)):
        hint = suggest_for_words(context.command_path, extra[1].split()) or hint
        message = f"unexpected extra argument{'s' if ' ' in extra[1] else ''} `{extra[1]}`"
    if corrected := _command_line_with(getattr(error, "option_name", None), context, words):
        message = str(getattr(error, "message", message))
        hint = f"options follow the command, as in `{corrected}`"
    elif _is_unknown_option(error):
        message = str(getattr(error, "message", message))
        hint = _suggest_option(context, error) or hint
    elif guess:
        hint = f"did you mean {rest}"
    elif possible := getattr(error, "possibilities", None):
        message = str(getattr(error, "message", message))
        hint = f"did you mean {' or '.join(sorted(possible))}?"
    return UsageError(message[:1].lower() + message[1:], hint=hint)


def _is_unknown_option(error: Exception) -> bool:
    return bool(getattr(error, "option_name", None)) and "no such option" in str(error).lower()


def _suggest_option(context: typer.Context | None, error: Exception) -> str | None:
    if context is None:
        return None
    option, possible = (getattr(error, name, None) for name in ("option_name", "possibilities"))
    root = context.find_root().command
    owners = root.owners if isinstance(root, RootGroup) else lambda option: ()
    return suggest_option(context.command_path, str(option), possible or (), owners)


def _command_line_with(
    option: str | None, context: typer.Context | None, words: Sequence[str]
) -> str | None:
    """Return a valid command line for *option*, which stands before a command by mistake."""
    if context is None or context.parent is not None or option is None:
        return None
    commands = getattr(context.command, "commands", {})
    typed = [word for word in words if word in commands]
    for name in (*typed, *commands):
        if any(option in parameter.opts for parameter in commands[name].params):
            rest = list(words) if name in typed else [option]
            if name in rest:
                rest.remove(name)
            return f"{context.command_path} {shlex.join([name, *rest])}"
    return None


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"idefics {__version__}")
        raise typer.Exit


def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            help="Show the version and exit.",
            is_eager=True,
            callback=_show_version,
        ),
    ] = False,
) -> None:
    """Ask about pictures and caption them with the IDEFICS family of models, on this machine."""
    if context.invoked_subcommand is None:
        environ = services_of(context).environ
        Console(sys.stdout, sys.stderr, environ=environ).report(overview())
