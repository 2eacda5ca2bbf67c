"""Slash commands about saved conversations: save, load and export them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from idefics_cli.chat.commands import completion
from idefics_cli.chat.commands.arguments import require_words
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.commands.line import split
from idefics_cli.chat.commands.slash_command import CommandContext, CommandResult
from idefics_cli.chat.descriptions import describe_resumed
from idefics_cli.core.errors import IdeficsError, UsageError

EXPORT_USAGE = "md|json|html [FILE]"
_KINDS = ("md", "json", "html")


def save_session(context: CommandContext, words: str) -> CommandResult:
    """Give the conversation a name, for `/load NAME` and `--session NAME`."""
    context.chat.turns.session.rename(require_words(words, "/save NAME", "a name"))
    return CommandResult((f"saved as {words}",))


def load_session(context: CommandContext, words: str) -> CommandResult:
    """Go on with a saved conversation."""
    chat = context.chat
    chat.load(require_words(words, "/load NAME", "a name"))
    lines = describe_resumed(chat.conversation, model=chat.model.name, folder=context.folder)
    return CommandResult(tuple(lines))


def export_session(context: CommandContext, words: str) -> CommandResult:
    """Write the conversation to a file, with its pictures."""
    from idefics_cli.chat.export import FORMATS

    kind, _, name = words.partition(" ")
    if kind not in FORMATS:
        raise UsageError(
            f"`{kind}` is not a format" if kind else "a format is missing",
            hint=f"/export {EXPORT_USAGE}",
        )
    path = Path((split(name) or [f"chat.{kind}"])[0]).expanduser()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(FORMATS[kind](context.chat.conversation))
    except FileExistsError:
        raise UsageError(f"`{path}` already exists", hint=f"/export {kind} OTHER_FILE") from None
    except OSError as error:
        raise IdeficsError(f"cannot write `{path}`: {error.strerror or error}") from error
    return CommandResult((f"wrote {path}",))


def complete_sessions(context: CommandContext, line: str) -> Iterable[Candidate]:
    """Complete the name of a saved conversation."""
    return completion.of_words(line, context.chat.saved())


def complete_export(context: CommandContext, line: str) -> Iterable[Candidate]:
    """Complete the format, then the file."""
    if len(line.split()) <= 2 and not line.endswith(" md "):
        return completion.of_words(line, ((kind, "") for kind in _KINDS))
    return completion.of_paths(line)
