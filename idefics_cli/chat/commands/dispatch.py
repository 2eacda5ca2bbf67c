"""The dispatcher of a chat: it runs a line as a slash command, as pictures, or as a question."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from idefics_cli.chat.attachments import StagedPicture
from idefics_cli.chat.commands import completion
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.commands.help import unknown_command
from idefics_cli.chat.commands.line import Line, read_line
from idefics_cli.chat.commands.slash_command import (
    CommandContext,
    CommandResult,
    SlashCommand,
    find_command,
)
from idefics_cli.chat.commands.table import COMMANDS
from idefics_cli.chat.dialogue import Chat
from idefics_cli.core.errors import ImageError

_NAME = re.compile(r"/([a-z?]*)(?:\s+|$)", re.IGNORECASE)

# Words that mean a command in other tools. As a question about a picture, such a word alone makes
# no sense.
_BARE_WORDS = {"exit": "exit", "quit": "exit", "bye": "exit", ":q": "exit", "help": "help"}


class Dispatcher:
    """Runs and completes the lines of one chat.

    Args:
        chat: The chat.
        folder: The current folder.
        commands: The slash commands by name.
        draws: As `CommandContext.draws`.
    """

    def __init__(
        self,
        chat: Chat,
        folder: Path,
        commands: Mapping[str, SlashCommand] = COMMANDS,
        *,
        draws: bool = True,
    ) -> None:
        self.chat = chat
        self.folder = folder
        self._context = CommandContext(chat, folder, commands, draws)

    def run(self, line: str) -> CommandResult:
        """Run a command, stage pictures, or ask a question, whichever *line* is.

        Raises:
            IdeficsError: If this is not possible. Nothing has changed then.
        """
        chat, commands = self.chat, self._context.commands
        if chat.conversation.pending:  # the last answer failed, and so did the roll-back
            chat.turns.roll_back()
        if not line.strip():
            chat.turns.editing = None
            return CommandResult()
        if bare := _BARE_WORDS.get(line.strip().lower()):
            line = f"/{bare}"
        match = _NAME.match(line)
        found = find_command(commands, match[1]) if match else None
        if match and found:
            chat.turns.editing = None  # after any command the next message is a new question
            return found.run(self._context, line[match.end() :].strip())
        if match and not os.path.exists(line.split()[0]):
            raise unknown_command(line.split()[0], commands)
        read = read_line(line)
        if not read.sources and line.startswith("/"):
            raise unknown_command(line.split()[0], commands)
        attached = self._attach(read)
        if not read.text.strip():
            is_known = bool(read.sources) and not attached
            return CommandResult(("it is attached already",) if is_known else (), attached)
        try:
            chat.check_marks(read.text)
            chat.ask(read.text)
        except BaseException:
            chat.turns.unstage(attached)  # the user will send the whole line again
            raise
        return CommandResult((), attached, answers=True)

    def _attach(self, read: Line) -> tuple[StagedPicture, ...]:
        if not read.sources:
            return ()
        try:
            return tuple(self.chat.attach(read.sources))
        except ImageError as error:
            if error.kind == "missing" and read.is_guess:
                hint = f"{error.hint}; " if error.hint else ""
                raise ImageError(
                    str(error), kind=error.kind, hint=f"{hint}a name in `backquotes` is text"
                ) from error
            raise

    def complete(self, line: str) -> list[Candidate]:
        """Return the candidates for the end of *line*."""
        if "\n" in line:
            return []
        commands = self._context.commands
        match = _NAME.match(line)
        if match and line[match.end(1) :]:
            found = find_command(commands, match[1])
            return list(found.complete(self._context, line)) if found and found.complete else []
        if completion.ends_in_path(line):
            return completion.path_candidates(line)
        if not line.startswith("/"):
            return []
        names = completion.word_candidates(
            line, ((f"/{c.name}", c.summary) for c in commands.values())
        )
        if line != "/":  # without aliases, the list of all commands has each command once
            names += completion.word_candidates(
                line, ((f"/{a}", f"/{c.name}") for c in commands.values() for a in c.aliases)
            )
        return names or (completion.path_candidates(line) if "/" in line[1:] else [])
