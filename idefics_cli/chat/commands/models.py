"""The slash command that changes the model."""

from __future__ import annotations

from collections.abc import Iterable

from idefics_cli.chat.commands import completion
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.commands.slash_command import CommandContext, CommandResult


def change_model(context: CommandContext, words: str) -> CommandResult:
    """Change the model; the conversation stays."""
    chat = context.chat
    if not words or words == chat.model.name:
        return CommandResult((f"the model is {chat.model.name}",))
    chat.switch_model(words)
    return CommandResult((f"the model is {chat.model.name} now",))


def complete_models(context: CommandContext, line: str) -> Iterable[Candidate]:
    """Complete the name of a model that chats."""
    from idefics_cli.models.hub.registry import MODELS

    return completion.word_candidates(
        line, ((m.name, m.summary) for m in MODELS.values() if m.chats)
    )
