"""Sections of a help page: arguments, options by panel, and commands."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from idefics_cli.ui.terminal.console import terminal_columns
from idefics_cli.ui.terminal.fold import fold

_MAX_WIDTH = 80
# On a terminal narrower than this, the help of an option is below its name.
_TWO_COLUMNS_WIDTH = 60
_NAME_COLUMNS = 30


def help_width() -> int:
    """Return the width of a help page on this terminal."""
    return min(terminal_columns(sys.stdout, os.environ), _MAX_WIDTH)


# Any: the classes of contexts and formatters are not public in Typer.
def write_sections(command: TyperCommand | TyperGroup, context: Any, formatter: Any) -> None:
    """Write the arguments, options and subcommands of *command* to *formatter*."""
    sections: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:  # hidden
            continue
        name, text = record
        if isinstance(parameter, TyperArgument):
            # The metavar comes first, because Typer adds the type to *name*, as in `PATH
            # <list[str]>`.
            sections["Arguments"].append((parameter.metavar or name, text))
        elif isinstance(parameter, TyperOption):
            sections[parameter.rich_help_panel or "Options"].append((name, text))
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            sections["Commands"].append((name, child.get_short_help_str(limit=1000)))
    for title, rows in sections.items():
        with formatter.section(title):
            if formatter.width >= _TWO_COLUMNS_WIDTH:
                formatter.write_dl(rows, col_max=_NAME_COLUMNS)
            else:
                names = ["\n".join(fold(name, formatter.width - 2, indent=4)) for name, _ in rows]
                formatter.write_dl(zip(names, (text for _, text in rows), strict=True), col_max=0)
