"""The start of every command, which merges the settings and makes the console."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass

import typer

from idefics_cli.cli.choices import CHOICES
from idefics_cli.cli.log import log_to
from idefics_cli.cli.services import Services
from idefics_cli.cli.stacks import check_stack_limit, enlarge_stacks
from idefics_cli.config.resolve import Resolved, resolve
from idefics_cli.config.settings import Settings, setting_table
from idefics_cli.core.errors import UsageError
from idefics_cli.core.paths import config_file
from idefics_cli.hardware.load import count_other_tasks
from idefics_cli.hardware.system import count_cores
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


# Commands that end soon, so that the load at their start tells that of their run.
_SHORT = frozenset({"ask", "chat"})
CONSOLE = "idefics_cli.console"
"""The key of the `Console` in the dictionary `meta` of a Typer context."""


def begin_command(context: typer.Context) -> Invocation:
    """Merge the options of the command with the environment, the file and the defaults.

    A parameter of the command is a setting if it has the name of a field of `Settings`. The command
    handles its other parameters itself. Messages of libraries are switched off unless `--verbose`
    is given.

    Raises:
        UsageError: If an option, a variable or the file has a wrong value, or if the limit of the
            stack is too small.
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
    log_to(console)
    check_stack_limit()
    for line in (*resolved.warnings, *_unknown_models(resolved), *enlarge_stacks(environ)):
        console.warn(line)
    # Without this variable, torch has no fused attention on many consumer GPUs of AMD, and the
    # scores of a picture of Idefics2 would take 14 GiB (torch 2.13, sdp_utils.cpp).
    environ.setdefault("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL", "1")
    if context.info_name in _SHORT and _is_crowded(resolved.settings.threads):
        environ.setdefault("OMP_WAIT_POLICY", "passive")
    if verbose:
        # The loader of models reads this variable, too, and sets the verbosity of transformers.
        environ.setdefault("TRANSFORMERS_VERBOSITY", "info")
    else:
        _silence_libraries(environ)
    return Invocation(resolved, console, services)


def _unknown_models(resolved: Resolved) -> Iterator[str]:
    """Yield a line for each table `[models."NAME"]` of the file whose model is unknown.

    A server may have models of any name.
    """
    if not resolved.models or resolved.is_given("server"):
        return
    from idefics_cli.models.hub.registry import find_model, unknown_model

    for name in resolved.models:
        if not (find_model(name) or "/" in name or os.path.isdir(name)):
            error = unknown_model(name)
            yield f'`[models."{name}"]` in `{resolved.file}`: {error}; {error.hint}'


def _is_crowded(threads: int | None) -> bool:
    """Return whether other programs leave no core for one of our threads.

    The threads of torch wait for each other without sleeping. If one of them gets no core, the
    others waste theirs: with one of two cores taken, `ask` takes twice as long. On an idle machine,
    threads that sleep take 3 to 6 % longer. OpenMP reads its variable when torch is imported.
    """
    ours = threads or count_cores()
    return count_other_tasks() + ours > (os.cpu_count() or ours)


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
    # The libraries read these variables when they are imported, which happens later. A variable
    # that the user has set stays. Sources: transformers.utils.logging, huggingface_hub.constants.
    environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    environ.setdefault("HF_HUB_VERBOSITY", "error")
    environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("bitsandbytes", "accelerate", "torch", "PIL"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
