"""The start of every command: merged settings, console and services."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import MutableMapping
from dataclasses import dataclass

import typer

from idefics_cli.cli.choices import CHOICES
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
        resolved: The merged settings, with the origin of each.
        console: Output for data and messages.
        services: Access to the outside world.
    """

    resolved: Resolved
    console: Console
    services: Services

    @property
    def settings(self) -> Settings:
        """The merged settings."""
        return self.resolved.settings


CONSOLE = "idefics_cli.console"
"""The key of the console in `meta` of the context of a command."""


def begin_command(context: typer.Context) -> Invocation:
    """Merge the options of the command with environment, file and defaults.

    A parameter of the command with the name of a field of `Settings` is that setting; the
    command itself handles its other parameters. Messages of libraries are switched off, except
    with `--verbose`.

    Raises:
        UsageError: If an option, a variable or the file has a wrong value.
    """
    services = services_of(context)
    flags = {name: value for name, value in context.params.items() if name in setting_table()}
    environ = services.environ
    resolved = resolve(flags, environ, config_file(environ), choices=CHOICES)
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
        # The loader also sets the verbosity of the libraries by this variable.
        environ.setdefault("TRANSFORMERS_VERBOSITY", "info")
    else:
        _silence_libraries(environ)
    return Invocation(resolved, console, services)


def services_of(context: typer.Context) -> Services:
    """Return the services in *context*, or the real ones."""
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


def _silence_libraries(environ: MutableMapping[str, str]) -> None:
    # The libraries read these variables at import, which comes later. A variable of the user
    # stays. Sources: transformers.utils.logging and huggingface_hub.constants.
    environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    environ.setdefault("HF_HUB_VERBOSITY", "error")
    environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("bitsandbytes", "accelerate", "torch", "PIL"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
