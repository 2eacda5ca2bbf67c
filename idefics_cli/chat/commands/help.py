"""The slash commands `/help` and `/exit`, and the suggestion for an unknown command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from idefics_cli.chat.commands import completion
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.commands.slash_command import CommandContext, CommandResult, SlashCommand
from idefics_cli.core.errors import UsageError

_KEYS = (
    "A picture dragged into the line, or @PATH, is attached too; [1] in a text is picture 1.",
    'Several lines: Alt-Enter, or """ before and after. Editor: Ctrl-X Ctrl-E. Search: Ctrl-R.',
    "Ctrl-C stops an answer, Ctrl-D leaves.",
)


def show_help(context: CommandContext, words: str) -> CommandResult:
    """List the commands."""
    if words:
        found = context.commands.get(words.removeprefix("/"))
        if found is None:
            raise unknown_command(words, context.commands)
        return CommandResult((f"{found.shown}: {found.summary}",))
    rows = tuple((command.shown, command.summary) for command in context.commands.values())
    return CommandResult(_KEYS, rows=rows)


def leave(context: CommandContext, words: str) -> CommandResult:
    """Leave."""
    return CommandResult(is_over=True)


def complete_names(context: CommandContext, line: str) -> Iterable[Candidate]:
    """Complete the name of a command."""
    return completion.word_candidates(
        line, ((c.name, c.summary) for c in context.commands.values())
    )


def unknown_command(word: str, commands: Mapping[str, SlashCommand]) -> UsageError:
    """Return the error for a line whose first *word* is not a command, with a suggestion."""
    name = word.removeprefix("/").lower()
    close = difflib.get_close_matches(name, commands, n=1, cutoff=0.5)
    close = close or [known for known in commands if name and known.startswith(name)][:1]
    if "/" in name:
        return UsageError(f"no picture `{word}`", hint="begin a text with a blank to send it")
    return UsageError(
        f"no command `{word}`",
        hint=f"did you mean `/{close[0]}`?" if close else "`/help` lists the commands",
    )
