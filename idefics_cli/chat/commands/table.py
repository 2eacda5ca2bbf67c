"""The table of all slash commands."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from idefics_cli.chat.commands import help as help_commands
from idefics_cli.chat.commands import models, pictures, sessions, settings, stats, turns
from idefics_cli.chat.commands.slash_command import SlashCommand

_ROWS = (
    SlashCommand("image", "PATH|URL|PATTERN…", pictures.attach_pictures, pictures.complete_paths),
    SlashCommand("paste", "", pictures.paste_picture),
    SlashCommand("images", "", pictures.list_pictures),
    SlashCommand("drop", "N", pictures.drop_picture),
    SlashCommand("undo", "", turns.undo_turn),
    SlashCommand(
        "retry", "[KEY=VALUE…]", turns.retry_turn, turns.complete_sampling, aliases=("regen",)
    ),
    SlashCommand("edit", "N", turns.edit_turn),
    SlashCommand("forget", "N", turns.forget_turns),
    SlashCommand("clear", "", turns.clear_turns, aliases=("reset", "new")),
    SlashCommand("copy", "[N]", turns.copy_answer),
    SlashCommand("editor", "", turns.write_question),
    SlashCommand("system", "[TEXT]", settings.set_instruction),
    SlashCommand("set", "[KEY=VALUE…]", settings.change_settings, settings.complete_settings),
    SlashCommand("schema", "[FIELDS|FILE|JSON]", settings.set_schema),
    SlashCommand("model", "[NAME]", models.change_model, models.complete_models),
    SlashCommand("stats", "", stats.show_stats),
    SlashCommand("save", "NAME", sessions.save_session),
    SlashCommand("load", "NAME", sessions.load_session, sessions.complete_sessions),
    SlashCommand(
        "export", sessions.EXPORT_USAGE, sessions.export_session, sessions.complete_export
    ),
    SlashCommand(
        "help",
        "[COMMAND]",
        help_commands.show_help,
        help_commands.complete_names,
        aliases=("?",),
    ),
    SlashCommand("exit", "", help_commands.leave, aliases=("quit", "bye", "q")),
)
COMMANDS: Mapping[str, SlashCommand] = MappingProxyType({row.name: row for row in _ROWS})
"""Every slash command by name, in the order of `/help`."""
