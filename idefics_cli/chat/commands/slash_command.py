"""The types of slash commands: their context, their result, and their row in the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.chat.attachments import StagedPicture
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.dialogue import Chat
from idefics_cli.core.types import Sampling


@dataclass(frozen=True, slots=True)
class CommandContext:
    """All that a slash command can use and change.

    Attributes:
        chat: The chat.
        folder: The current folder.
        commands: All slash commands by name, in the order of `/help`.
        draws: Whether the line input is the full line editor, which has more keys than the plain
            one.
    """

    chat: Chat
    folder: Path
    commands: Mapping[str, SlashCommand]
    draws: bool = True


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What the terminal shows and does after a line.

    Attributes:
        lines: Lines to show.
        attached: Pictures to show, which were just staged.
        answers: Whether the model must answer the pending question now.
        sampling: How tokens are chosen for this answer only.
        draft: A text that the user can edit as the next question.
        wants_editor: Whether to open an editor for the next question.
        is_over: Whether the chat ends.
        rows: Two columns to show before the lines.
        copied: A text for the clipboard.
    """

    lines: tuple[str, ...] = ()
    attached: tuple[StagedPicture, ...] = ()
    answers: bool = False
    sampling: Sampling | None = None
    draft: str = ""
    wants_editor: bool = False
    is_over: bool = False
    rows: tuple[tuple[str, str], ...] = ()
    copied: str = ""


Run = Callable[[CommandContext, str], CommandResult]
"""Runs a command with the words that follow its name."""
Complete = Callable[[CommandContext, str], Iterable[Candidate]]
"""Completes the last word of a line that begins with the command."""


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """One row of the table, from which help, completion and dispatch are made.

    Attributes:
        name: The name without the slash.
        usage: The words that follow the name, for `/help`.
        run: Runs the command; the first line of its docstring is the text of `/help`.
        complete: Completes the words; None if there is nothing to complete.
        aliases: Other names of the command, which other tools use.
    """

    name: str
    usage: str
    run: Run
    complete: Complete | None = None
    aliases: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The command with its words, such as `/drop N`."""
        return f"/{self.name} {self.usage}".rstrip()

    @property
    def summary(self) -> str:
        """One line for `/help`, with the aliases."""
        text = (self.run.__doc__ or "").partition("\n")[0].removesuffix(".")
        also = ", ".join(f"`/{alias}`" for alias in self.aliases)
        return f"{text}; also {also}" if also else text


def find_command(commands: Mapping[str, SlashCommand], name: str) -> SlashCommand | None:
    """Return the command with the name or alias *name*, in upper or lower case, or None."""
    name = name.lower()
    by_alias = (command for command in commands.values() if name in command.aliases)
    return commands.get(name) or next(by_alias, None)
