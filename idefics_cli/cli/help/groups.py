"""The classes of our commands, which write their own help pages and suggest other commands.

Typer has two kinds of help pages. The kind with panels cuts the names of options at 80 columns
(`--attention,--attn-imp…`), uses colours that cannot be read on a white background, and imports
rich: `idefics caption --help` takes 0.27 s with it and 0.19 s without it. The plain kind, which
`rich_markup_mode=None` selects, has none of these faults. But it puts all options into one list and
needs 50 columns.

The classes here use the plain kind and override two public methods: `format_help` sets the width,
and `format_options` writes a section for each panel. `tests/models/test_upstream.py` has a row for
each part of Typer that is used.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from idefics_cli.cli.help.command_suggestions import suggest_command
from idefics_cli.cli.help.sections import help_width, write_sections
from idefics_cli.core.errors import UsageError


# Any: the classes of contexts and formatters are not public in Typer.
class HelpCommand(TyperCommand):
    """A command with our help page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page with the width of the terminal."""
        formatter.width = help_width()
        super().format_help(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        write_sections(self, ctx, formatter)


class HelpGroup(TyperGroup):
    """A group of commands with our help page, and with suggestions for unknown commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page with the width of the terminal."""
        formatter.width = help_width()
        super().format_help(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the options and the commands."""
        write_sections(self, ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the subcommand of *args*.

        Raises:
            UsageError: If there is no such command, and there is a suggestion.
        """
        word = args[0]
        if self.get_command(ctx, word) is None and not word.startswith("-"):
            hint = suggest_command(str(ctx.command_path), args, self.list_commands(ctx))
            if hint:
                raise UsageError(f"there is no command `{word}`", hint=hint)
        return super().resolve_command(ctx, args)
