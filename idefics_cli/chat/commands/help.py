"""The slash commands `/help` and `/exit`, and the suggestion for an unknown command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from idefics_cli.chat.commands import completion
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.commands.slash_command import (
    CommandContext,
    CommandResult,
    SlashCommand,
    find_command,
)
from idefics_cli.chat.sampling_settings import DISPLAY_KEYS, SAMPLING_KEYS
from idefics_cli.core.errors import UsageError

_SAVED = "`/load NAME` opens a saved chat; Tab after `/load ` lists the names"
# Commands of other chat tools that have no equivalent here. Each hint says what to do instead.
_ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "history": "Up and Ctrl-R bring back what you typed, `/export md` writes the conversation",
        "read": "`/image PATH` attaches a picture; paste a text into the line",
        "file": "`/image PATH` attaches a picture; paste a text into the line",
        "list": "`/images` lists the pictures, `idefics models` the models",
        "show": "`/stats` shows the model and the context, `/set` the settings",
        "info": "`/stats` shows the model and the context, `/set` the settings",
        "sessions": _SAVED,
        "resume": _SAVED,
        **{key: f"`/set {key}=VALUE` sets it" for key in (*SAMPLING_KEYS, *DISPLAY_KEYS)},
    }
)
# A name is suggested only if more than two thirds of the letters agree. With 0.5, `/drop` was
# suggested for `/copy`.
_CUTOFF = 0.67
_PICTURES = (
    "A picture dragged into the line, or @PATH, is attached too; [1] in a text is picture 1."
)
_DRAWN_KEYS = (
    'Several lines: Alt-Enter, or """ before and after. Editor: Ctrl-X Ctrl-E. Search: Ctrl-R.'
)
_PLAIN_KEYS = 'Several lines: paste them, or """ before and after. Search: Ctrl-R.'
_STOP_KEYS = "Ctrl-C stops an answer, Ctrl-D leaves."


def show_help(context: CommandContext, words: str) -> CommandResult:
    """List the commands."""
    if words:
        found = find_command(context.commands, words.removeprefix("/"))
        if found is None:
            raise unknown_command(words, context.commands)
        return CommandResult((f"{found.shown}: {found.summary}",))
    rows = tuple((command.shown, command.summary) for command in context.commands.values())
    keys = _DRAWN_KEYS if context.draws else _PLAIN_KEYS
    return CommandResult((_PICTURES, keys, _STOP_KEYS), rows=rows)


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
    if "/" in name:
        return UsageError(f"no picture `{word}`", hint="begin a text with a blank to send it")
    if name in _ELSEWHERE:
        return UsageError(f"no command `{word}`", hint=_ELSEWHERE[name])
    names = [*commands, *(alias for command in commands.values() for alias in command.aliases)]
    close = [known for known in names if name and known.startswith(name)][:1]
    close = close or difflib.get_close_matches(name, names, n=1, cutoff=_CUTOFF)
    return UsageError(
        f"no command `{word}`",
        hint=f"did you mean `/{close[0]}`?" if close else "`/help` lists the commands",
    )
