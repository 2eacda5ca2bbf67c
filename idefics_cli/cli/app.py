"""The command `idefics`: its subcommands, its start, and its end."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import NoReturn

import typer

from idefics_cli.cli.help.groups import HelpCommand
from idefics_cli.cli.lost_interrupts import repeat_lost_interrupts
from idefics_cli.cli.root import RootGroup, root
from idefics_cli.core.errors import EXIT_DONE, EXIT_INTERRUPTED
from idefics_cli.ui.terminal.stderr import dropping

_EPILOG = (
    "Options are also variables IDEFICS_NAME and keys of config.toml; `idefics config` shows them."
)
# Where each command is, in the order of the help page. A function is a command, a Typer is a group
# of commands.
_COMMANDS = {
    "ask": "ask:ask",
    "chat": "chat:chat",
    "caption": "caption.command:caption",
    "collect": "collect:collect",
    "batch": "batch:batch",
    "serve": "serve:serve",
    "tune": "tune.command:tune",
    "sessions": "sessions:app",
    "models": "models:app",
    "doctor": "doctor.command:doctor",
    "bench": "bench.command:bench",
    "demo": "demo:demo",
    "config": "config:app",
    "completion": "completion:app",
}


class _Root(RootGroup):
    """The root command, which may hold only the command that is called."""

    def owners(self, option: str) -> Sequence[str]:
        """Return the commands that have *option*, of all commands."""
        if len(self.commands) == len(_COMMANDS):
            return super().owners(option)
        everything = typer.main.get_group(make_app())
        assert isinstance(everything, RootGroup)
        return everything.owners(option)


def make_app(names: Iterable[str] = tuple(_COMMANDS)) -> typer.Typer:
    """Return the command `idefics` with the commands *names*, all by default."""
    app = typer.Typer(
        cls=_Root,
        add_completion=False,  # see `completion/__init__.py`
        epilog=_EPILOG,
        rich_markup_mode=None,  # see `cli/help/groups.py`
        pretty_exceptions_enable=False,  # a bug prints a plain traceback, without local variables
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(root)
    for name in names:
        module, _, attribute = _COMMANDS[name].partition(":")
        found = getattr(import_module(f"idefics_cli.cli.commands.{module}"), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name, cls=HelpCommand)(found)
    return app


def main() -> NoReturn:
    """Run `idefics` with the arguments of this process."""
    # Python sets a stream to None if the parent process has closed it.
    sys.stdout = sys.stdout or _closed_stdout()
    sys.stderr = dropping(sys.stderr or open(os.devnull, "w"))  # noqa: SIM115 (stays open)
    repeat_lost_interrupts()
    # To import all commands takes 0.1 s more than to import the one that is called. `completion`
    # writes scripts that know all commands.
    called = [word for word in sys.argv[1:2] if word in _COMMANDS and word != "completion"]
    try:
        make_app(called or _COMMANDS)(prog_name="idefics")
    except KeyboardInterrupt:
        pass  # Ctrl-C came before `RootGroup.main` ran, which handles a later one
    except SystemExit as end:
        # The process does not end in Python's usual way, for three reasons. To free what torch has
        # imported takes 0.15 s. Python stops daemon threads by force: one that is inside torch, as
        # a reader of pictures can be, aborts the process with SIGABRT ("terminate called …"). And
        # triton, which PyTorch's builds for CUDA import, prints its "leaked instances" to stderr.
        others = [t for t in threading.enumerate() if t is not threading.main_thread()]
        if end.code != EXIT_INTERRUPTED and not any(thread.daemon for thread in others):
            threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python does
            atexit._run_exitfuncs()
        _leave_at_once(int(end.code or EXIT_DONE))
    _leave_at_once(EXIT_INTERRUPTED)


class _ClosedFile(io.FileIO):
    """A file in place of a closed stdout, so that no other file gets the descriptor of stdout."""

    def write(self, data: object, /) -> NoReturn:
        """Raise an error, so that the user learns that the output is lost."""
        raise OSError(errno.EBADF, "stdout is closed")


def _closed_stdout() -> io.TextIOWrapper:
    return io.TextIOWrapper(_ClosedFile(os.devnull, "w"), "utf-8", write_through=True)


def _leave_at_once(code: int) -> NoReturn:
    """Exit without waiting for threads; one may be loading weights or reading a long prompt."""
    # A library may have kept the stderr of the start, which has a buffer of its own.
    for stream in (sys.stdout, sys.__stderr__, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:  # Python sets a stream that was closed to None
                stream.flush()
    os._exit(code)
