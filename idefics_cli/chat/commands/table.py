"""What a slash command is, and the table of all of them, which `commands.py` fills."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from idefics_cli.chat.attachments import StagedPicture
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.dialogue import Chat
from idefics_cli.core.errors import UsageError
from idefics_cli.core.types import Sampling


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What is to be done after a line was taken.

    Attributes:
        rows: To tell in two columns, before the lines.
        lines: To tell.
        attached: Pictures to show.
        answers: Whether the model is to answer now: the pending question.
        sampling: For that answer only.
        draft: A text to offer for editing.
        is_over: Whether the chat is left.
    """

    lines: tuple[str, ...] = ()
    attached: tuple[StagedPicture, ...] = ()
    answers: bool = False
    sampling: Sampling | None = None
    draft: str = ""
    is_over: bool = False
    rows: tuple[tuple[str, str], ...] = ()


Run = Callable[[Chat, str], CommandResult]
Complete = Callable[[Chat, str], Iterable[Candidate]]


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """One row of the table.

    Attributes:
        name: Without the slash.
        usage: What follows it, for people.
        summary: One line.
        run: Does it.
        complete: Completes what follows it.
    """

    name: str
    usage: str
    summary: str
    run: Run
    complete: Complete | None = None

    @property
    def shown(self) -> str:
        """The command with its words, as `/drop N`."""
        return f"/{self.name} {self.usage}".rstrip()


COMMANDS: dict[str, SlashCommand] = {}
"""Every command by name, in the order of the help."""


def command(
    name: str, usage: str = "", *, complete: Complete | None = None
) -> Callable[[Run], Run]:
    """Put a function into the table; the first line of its docstring is the help."""

    def add(run: Run) -> Run:
        summary = (run.__doc__ or "").partition("\n")[0].removesuffix(".")
        COMMANDS[name] = SlashCommand(name, usage, summary, run, complete)
        return run

    return add


def unknown_command(word: str) -> UsageError:
    """Return the error for the first *word* of a line that is no command, with a suggestion."""
    name = word.removeprefix("/").lower()
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    close = close or [known for known in COMMANDS if name and known.startswith(name)][:1]
    if "/" in name:
        return UsageError(f"no picture `{word}`", hint="begin a text with a blank to send it")
    return UsageError(
        f"no command `{word}`",
        hint=f"did you mean `/{close[0]}`?" if close else "`/help` lists the commands",
    )
