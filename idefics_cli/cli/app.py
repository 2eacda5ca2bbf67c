"""The command `idefics`: its subcommands, and the one place that turns errors into lines."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shlex
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from idefics_cli import __version__
from idefics_cli.cli.commands import ask, chat, completion, config, demo, doctor, models, sessions
from idefics_cli.cli.commands.bench import command as bench
from idefics_cli.cli.commands.caption import command as caption
from idefics_cli.cli.help.guidance import GuidingGroup, overview
from idefics_cli.cli.help.meant_options import check_dashes, meant_option, meant_words
from idefics_cli.cli.invocation import CONSOLE, services_of
from idefics_cli.cli.services import Services
from idefics_cli.core.errors import EXIT_DONE, EXIT_INTERRUPTED, IdeficsError, UsageError
from idefics_cli.ui.terminal.console import Console

_EPILOG = (
    "Every option is also a variable IDEFICS_NAME and a key of config.toml; "
    "`idefics config` shows them."
)
# The base of all errors that Typer raises for wrong usage. Typer exports it under another name
# in each of 0.26 to 0.29; its subclass BadParameter is public in all of them.
_TyperError: type[Exception] = typer.BadParameter.__mro__[2]
# Of a full or failing disk; Typer itself ends quietly when the reader of a pipe is gone.
_UNWRITABLE = frozenset(
    {errno.EBADF, errno.ENOSPC, errno.EIO, errno.EFBIG, getattr(errno, "EDQUOT", -1)}
)


class RootGroup(GuidingGroup):
    """Turns every error that a user can cause into `error:` and `hint:` lines and a code."""

    # Any: the signature of Typer's own.
    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run the command and exit; *standalone_mode* is always on."""
        words = list(sys.argv[1:] if args is None else args)
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        try:
            check_dashes(words)
            # Off for the base class: it then leaves its usage errors to us.
            code = super().main(words, prog_name, complete_var, False, windows_expand_args, **extra)
        except IdeficsError as error:
            sys.exit(_report(error, extra.get("obj")))
        except _TyperError as error:
            sys.exit(_report(_usage_error(error, words=words), extra.get("obj")))
        except OSError as error:
            # Help and version are written by Typer; what our commands write is wrapped there.
            if error.errno not in _UNWRITABLE:
                raise
            failure = IdeficsError(f"cannot write the output: {error.strerror}")
            sys.exit(_report(failure, extra.get("obj")))
        sys.exit(code if isinstance(code, int) else 0)

    # Any: the class of the context is public in some versions of Typer only.
    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; a usage error that does not tell its command is one of it."""
        try:
            return super().invoke(ctx)
        except IdeficsError as error:
            sys.exit(_report(error, ctx.obj, ctx.meta.get(CONSOLE)))
        except _TyperError as error:
            if getattr(error, "ctx", None) is not None or not ctx.invoked_subcommand:
                raise
            raise _usage_error(error, f"{ctx.command_path} {ctx.invoked_subcommand}") from error


def _report(error: IdeficsError, services: object, console: Console | None = None) -> int:
    environ = services.environ if isinstance(services, Services) else os.environ
    # That of the command, if it came so far, knows whether the user wants no colours.
    (console or Console(sys.stdout, sys.stderr, environ=environ)).error(error)
    try:
        sys.stdout.flush()
    except OSError:
        # Python would try again at its end, and hide our exit code behind one of its own.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (stays open to the end)
    return error.exit_code


def _usage_error(
    error: Exception, command: str = "idefics", words: Sequence[str] = ()
) -> UsageError:
    """Return Typer's *error* in our form: what is wrong on one line, what to do on the next.

    Args:
        error: Any usage error of Typer.
        command: Where it happened, if the error does not tell.
        words: All that was typed after `idefics`, if it is known.
    """
    message = str(getattr(error, "format_message", error.__str__)()).removesuffix(".")
    message, guess, rest = message.partition(". Did you mean ")
    context: typer.Context | None = getattr(error, "ctx", None)
    hint = f"`{context.command_path if context else command} --help` shows the usage"
    if context and (extra := re.search(r"unexpected extra argument.*\((.*)\)", message)):
        hint = meant_words(context.command_path, extra[1].split()) or hint
    if taker := _taker(context, getattr(error, "option_name", None), words):
        message = str(getattr(error, "message", message))
        hint = f"options follow the command, as in `{taker}`"
    elif meant := _meant_option(context, error):
        message = str(getattr(error, "message", message))
        hint = meant
    elif guess:
        hint = f"did you mean {rest}"
    elif possible := getattr(error, "possibilities", None):
        message = str(getattr(error, "message", message))
        hint = f"did you mean {' or '.join(sorted(possible))}?"
    return UsageError(message[:1].lower() + message[1:], hint=hint)


def _meant_option(context: typer.Context | None, error: Exception) -> str | None:
    option = getattr(error, "option_name", None)
    if context is None or option is None or "no such option" not in str(error).lower():
        return None
    return meant_option(context.command_path, option)


def _taker(context: typer.Context | None, option: str | None, words: Sequence[str]) -> str | None:
    """Return a command line that takes *option*, which was given before any command."""
    if context is None or context.parent is not None or option is None:
        return None
    commands = getattr(context.command, "commands", {})
    meant = [word for word in words if word in commands]
    for name in (*meant, *commands):
        if any(option in parameter.opts for parameter in commands[name].params):
            rest = list(words) if name in meant else [option]
            if name in rest:
                rest.remove(name)
            return f"{context.command_path} {shlex.join([name, *rest])}"
    return None


app = typer.Typer(
    cls=RootGroup,
    add_completion=False,  # `idefics completion` is faster, and knows pictures and sessions
    epilog=_EPILOG,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # a bug of ours is a plain traceback, without its locals
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"idefics {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            help="Show the version and exit.",
            metavar="",
            is_eager=True,
            callback=_show_version,
        ),
    ] = False,
) -> None:
    """Talk about pictures with the IDEFICS family of models, on this machine."""
    if context.invoked_subcommand is None:
        environ = services_of(context).environ
        Console(sys.stdout, sys.stderr, environ=environ).report(overview())


app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("caption")(caption.caption)
app.add_typer(sessions.app, name="sessions")
app.add_typer(models.app, name="models")
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)
app.command("demo")(demo.demo)
app.add_typer(config.app, name="config")
app.add_typer(completion.app, name="completion")


def main() -> NoReturn:
    """Run `idefics` with the arguments of this process."""
    # A parent may have closed these; Python then has None for them.
    sys.stdout = sys.stdout or _closed_stdout()
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 (stays open to the end)
    try:
        app(prog_name="idefics")
    except KeyboardInterrupt:
        pass  # while Typer is still putting the commands together; later, RootGroup.main exits
    except SystemExit as end:
        # Python stops daemon threads by force; one that is inside of torch then, as a reader of
        # pictures, takes the process down with SIGABRT ("terminate called …").
        if end.code != EXIT_INTERRUPTED and not any(t.daemon for t in threading.enumerate()):
            raise
        _leave_at_once(int(end.code or EXIT_DONE))
    _leave_at_once(EXIT_INTERRUPTED)


class _ClosedFile(io.FileIO):
    """What takes the place of a closed stdout, and of its number, so that no file gets it."""

    def write(self, data: object, /) -> NoReturn:
        """Refuse: whoever closed stdout is told that there was something for it."""
        raise OSError(errno.EBADF, "stdout is closed")


def _closed_stdout() -> io.TextIOWrapper:
    return io.TextIOWrapper(_ClosedFile(os.devnull, "w"), "utf-8", write_through=True)


def _leave_at_once(code: int) -> NoReturn:
    """End without waiting for a thread that reads weights or a long prompt, as Python would."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
