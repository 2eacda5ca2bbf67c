"""From a line to what is done about it: a command, pictures, or a question."""

from __future__ import annotations

import re

from idefics_cli.chat.commands import completion
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.commands.line import read_line
from idefics_cli.chat.commands.table import COMMANDS, CommandResult, unknown_command
from idefics_cli.chat.dialogue import Chat

_NAME = re.compile(r"/([a-z?]*)(?:\s+|$)", re.IGNORECASE)

# What leaves other tools; no question about a picture is only that.
_BARE_WORDS = {"exit": "exit", "quit": "exit", "bye": "exit", ":q": "exit", "help": "help"}


def take(chat: Chat, line: str) -> CommandResult:
    """Do what *line* says: a command, pictures to stage, or a question.

    Raises:
        IdeficsError: If it cannot be done; nothing has changed then.
    """
    if not line.strip():
        chat.turns.editing = None
        return CommandResult()
    if bare := _BARE_WORDS.get(line.strip().lower()):
        line = f"/{bare}"
    match = _NAME.match(line)
    found = COMMANDS.get(match[1].lower()) if match else None
    if match and found:
        chat.turns.editing = None  # whatever else is done, the next text is a new question
        return found.run(chat, line[match.end() :].strip())
    read = read_line(line)
    if not read.sources and line.startswith("/"):
        raise unknown_command(line.split()[0])
    attached = tuple(chat.attach(read.sources)) if read.sources else ()
    if not read.text.strip():
        return CommandResult(attached=attached)
    lines = _unknown_references(chat, read.text)
    chat.ask(read.text)
    return CommandResult(lines, attached, answers=True)


def complete(chat: Chat, line: str) -> list[Candidate]:
    """Return what may stand at the end of *line*."""
    if "\n" in line:
        return []
    match = _NAME.match(line)
    if match and line[match.end(1) :]:
        found = COMMANDS.get(match[1].lower())
        return list(found.complete(chat, line)) if found and found.complete else []
    if completion.at_path(line):
        return completion.of_paths(line)
    if not line.startswith("/"):
        return []
    names = completion.of_words(line, ((f"/{c.name}", c.summary) for c in COMMANDS.values()))
    return names or (completion.of_paths(line) if "/" in line[1:] else [])


def _unknown_references(chat: Chat, text: str) -> tuple[str, ...]:
    first = len(chat.conversation.pictures) + 1
    staged = range(first, first + len(chat.turns.staged))
    numbers = set(chat.conversation.unknown_references(text)) - set(staged)
    return tuple(
        f"there is no picture [{n}]; the model gets `[{n}]` as it is" for n in sorted(numbers)
    )
