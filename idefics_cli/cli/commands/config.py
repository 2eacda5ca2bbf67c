"""`idefics config`: the merged settings, with the origin of each."""

from __future__ import annotations

import json as json_module
import sys

import typer

from idefics_cli.cli import options
from idefics_cli.cli.help.groups import HelpCommand, HelpGroup
from idefics_cli.cli.invocation import begin_command, services_of
from idefics_cli.config.resolve import Origin, Resolved
from idefics_cli.config.setting import Setting, Value
from idefics_cli.config.settings import setting_table
from idefics_cli.core.paths import config_file
from idefics_cli.core.text import one_line
from idefics_cli.ui.terminal.console import Console

app = typer.Typer(cls=HelpGroup)


@app.callback(invoke_without_command=True)
def config(context: typer.Context, json: options.Json = None) -> None:
    """Show every setting with its value and its origin.

    The output is a valid config.toml.
    """
    if context.invoked_subcommand is not None:
        return
    invocation = begin_command(context)
    if invocation.settings.json:
        invocation.console.json(_record(invocation.resolved))
        return
    for line in _lines(invocation.resolved):
        invocation.console.line(line)


@app.command(cls=HelpCommand)
def path(context: typer.Context) -> None:
    """Print the path of config.toml, which need not exist."""
    environ = services_of(context).environ
    Console(sys.stdout, sys.stderr, environ=environ).line(str(config_file(environ)))


def _record(resolved: Resolved) -> dict[str, object]:
    settings = {}
    for name in setting_table():
        origin = resolved.origins[name]
        settings[name] = {
            "value": resolved.written(name),
            "source": origin.source,
            "name": origin.name or None,
        }
    return {
        "file": str(resolved.file),
        "exists": resolved.file.is_file(),
        "settings": settings,
    }


def _lines(resolved: Resolved) -> list[str]:
    state = "" if resolved.file.is_file() else " (does not exist)"
    lines = [f"# {one_line(str(resolved.file))}{state}"]
    for name, setting in setting_table().items():
        lines.append(
            f"{_line(setting, resolved.written(name)):<40}  # {_shown(resolved.origins[name])}"
        )
    return lines


def _line(setting: Setting, value: Value) -> str:
    if setting.command_line_only:
        return f"# {setting.name}: only as {setting.flag}"
    if value is None:
        return f"# {setting.name}: {setting.unset or 'not set'}"
    return f"{setting.name} = {_toml(value)}"


def _shown(origin: Origin) -> str:
    return one_line(origin.name or origin.source)


def _toml(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A string of JSON is also a basic string of TOML. The only difference is the character
        # DEL, which TOML writes as an escape.
        return json_module.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
