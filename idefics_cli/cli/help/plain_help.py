"""Help where Typer's panels would cut the names of options or could not be written at all."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from idefics_cli.ui.terminal.console import terminal_columns
from idefics_cli.ui.terminal.fold import fold

_LEAST_COLUMNS = 60
_EMPHASIZED = (
    *("OPTION", "SWITCH", "NEGATIVE_OPTION", "NEGATIVE_SWITCH"),
    *("USAGE", "COMMANDS_TABLE_FIRST_COLUMN"),
)


def is_needed() -> bool:
    """Tell whether the terminal has no room for panels, or stdout no signs to draw them with."""
    is_narrow = terminal_columns(sys.stdout, os.environ) < _LEAST_COLUMNS
    return is_narrow or not _encoding().lower().startswith("utf")


# Any: the classes of commands and contexts are public in some versions of Typer only.
def write_help(command: Any, context: Any, formatter: Any) -> None:
    """Write what `--help` tells of *command*, each name on a line and its help below it."""
    width = terminal_columns(sys.stdout, os.environ)
    for line in _lines(command, context):
        indent = len(line) - len(line.lstrip(" "))
        text = "\n".join(fold(line, width, indent=indent)) + "\n"
        formatter.write(text.encode(_encoding(), "replace").decode(_encoding()))


def use_legible_styles() -> None:
    """Let Typer write help in what can be read on a white ground too: no yellow, no cyan."""
    from typer import rich_utils

    for name in _EMPHASIZED:
        setattr(rich_utils, f"STYLE_{name}", "bold")
    # One thing, by its names in Typer 0.29 and 0.26.
    for name in ("TYPES", "METAVAR"):
        setattr(rich_utils, f"STYLE_{name}", "magenta")


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def _lines(command: Any, context: Any) -> Iterator[str]:
    yield " ".join(["Usage:", context.command_path, *command.collect_usage_pieces(context)])
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")):
        yield from ("", " ".join(paragraph.split()))
    panel = None
    for parameter in sorted(command.get_params(context), key=_is_option):
        if (record := parameter.get_help_record(context)) is None:
            continue
        if panel != (panel := getattr(parameter, "rich_help_panel", None) or _kind(parameter)):
            yield from ("", f"{panel}:")
        yield from _entry(*record)
    commands = {n: c for n, c in getattr(command, "commands", {}).items() if not c.hidden}
    if commands:
        yield from ("", "Commands:")
    for name, child in commands.items():
        yield from _entry(name, child.get_short_help_str(limit=1000))
    if command.epilog:
        yield from ("", " ".join(command.epilog.split()))


def _entry(name: str, text: str) -> Iterator[str]:
    yield f"  {name}"
    if text:
        yield f"      {text}"


def _is_option(parameter: Any) -> bool:
    return str(parameter.param_type_name) == "option"


def _kind(parameter: Any) -> str:
    return "Options" if _is_option(parameter) else "Arguments"
