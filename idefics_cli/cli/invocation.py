"""What every command starts with: its settings merged, its console, the services."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import MutableMapping
from dataclasses import dataclass

import typer

from idefics_cli.cli.services import Services
from idefics_cli.config.resolve import Resolved, resolve
from idefics_cli.config.settings import Settings, setting_table
from idefics_cli.core.errors import UsageError
from idefics_cli.core.paths import config_file
from idefics_cli.ui.terminal.console import Console


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of a command.

    Attributes:
        settings: The merged settings.
        resolved: The same, with where each is from.
        console: Where data and messages go.
        services: The world outside.
    """

    resolved: Resolved
    console: Console
    services: Services

    @property
    def settings(self) -> Settings:
        """The merged settings."""
        return self.resolved.settings


CONSOLE = "idefics_cli.console"
"""The key of the console in `meta` of a command's context."""


def begin_command(context: typer.Context) -> Invocation:
    """Merge the options of the command with environment, file and defaults.

    A parameter of the command that is named as a field of `Settings` is that setting; others
    are inputs and are left to the command. Libraries are told to keep quiet unless `--verbose`.

    Raises:
        UsageError: If an option, a variable or the file has a wrong value.
    """
    services = services_of(context)
    flags = {name: value for name, value in context.params.items() if name in setting_table()}
    environ = services.environ
    resolved = resolve(flags, environ, config_file(environ))
    quiet, verbose = _verbosity(resolved)
    console = Console(
        sys.stdout,
        sys.stderr,
        quiet=quiet,
        environ=environ,
        accessible=resolved.settings.accessible,
    )
    context.meta[CONSOLE] = console
    for line in resolved.warnings:
        console.warn(line)
    if verbose:
        # The loader, too, lets the libraries speak at this level.
        environ.setdefault("TRANSFORMERS_VERBOSITY", "info")
    else:
        _hush_libraries(environ)
    return Invocation(resolved, console, services)


def services_of(context: typer.Context) -> Services:
    """Return the services that the caller put into the context, or the real ones."""
    return context.obj if isinstance(context.obj, Services) else Services()


def _verbosity(resolved: Resolved) -> tuple[bool, bool]:
    settings = resolved.settings
    if not (settings.quiet and settings.verbose):
        return settings.quiet, settings.verbose
    quiet = resolved.overrides("quiet", "verbose")
    verbose = resolved.overrides("verbose", "quiet")
    if not quiet and not verbose:
        raise UsageError("--quiet and --verbose exclude each other")
    return quiet, verbose


def _hush_libraries(environ: MutableMapping[str, str]) -> None:
    # Read when the libraries are imported, which no command has done yet; a variable that the
    # user set stays. Names: transformers.utils.logging and huggingface_hub.constants.
    environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    environ.setdefault("HF_HUB_VERBOSITY", "error")
    environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("bitsandbytes", "accelerate", "torch", "PIL"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
