"""Slash commands about saved conversations: save, load and export them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from idefics_cli.chat.commands import completion
from idefics_cli.chat.commands.arguments import require_words
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.commands.line import split_words
from idefics_cli.chat.commands.slash_command import CommandContext, CommandResult
from idefics_cli.chat.descriptions import describe_resumed
from idefics_cli.core.errors import UsageError

EXPORT_USAGE = "md|json|html [FILE]"
_KINDS = ("md", "json", "html")


def save_session(context: CommandContext, words: str) -> CommandResult:
    """Give the conversation a name, for `/load NAME` and `--session NAME`."""
    context.chat.turns.session.rename(require_words(words, "/save NAME", "a name"))
    return CommandResult((f"saved as {words}",))


def load_session(context: CommandContext, words: str) -> CommandResult:
    """Continue a saved conversation."""
    chat = context.chat
    chat.load(require_words(words, "/load NAME", "a name"))
    lines = describe_resumed(chat.conversation, model=chat.model.name, folder=context.folder)
    return CommandResult(tuple(lines))


def export_session(context: CommandContext, words: str) -> CommandResult:
    """Write the conversation to a file, with its pictures."""
    from idefics_cli.chat.export import FORMATS, write_export

    kind, _, name = words.partition(" ")
    if kind not in FORMATS:
        raise UsageError(
            f"`{kind}` is not a format" if kind else "a format is missing",
            hint=f"/export {EXPORT_USAGE}",
        )
    given = split_words(name)
    # Without quotes, a name with spaces is the whole rest of the line.
    path = Path(given[0] if len(given) == 1 else name.strip() or f"chat.{kind}").expanduser()
    write_export(context.chat.conversation, kind, path)
    return CommandResult((f"wrote {path}",))


def complete_sessions(context: CommandContext, line: str) -> Iterable[Candidate]:
    """Complete the name of a saved conversation."""
    return completion.word_candidates(line, context.chat.saved())


def complete_export(context: CommandContext, line: str) -> Iterable[Candidate]:
    """Complete the format, then the file."""
    if len(line.split()) <= 2 and not line.endswith(" md "):
        return completion.word_candidates(line, ((kind, "") for kind in _KINDS))
    return completion.path_candidates(line)
