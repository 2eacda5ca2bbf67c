"""Slash commands about pictures: attach, list and drop them."""

from __future__ import annotations

from collections.abc import Iterable

from idefics_cli.chat.commands import completion
from idefics_cli.chat.commands.arguments import read_number, refuse_words, require_words
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.commands.line import expand_sources
from idefics_cli.chat.commands.slash_command import CommandContext, CommandResult
from idefics_cli.chat.descriptions import (
    GOES_WITH_NEXT,
    describe_asked,
    describe_staged,
    picture_name,
)
from idefics_cli.chat.dialogue import Chat
from idefics_cli.core.errors import ImageError, UsageError


def attach_pictures(context: CommandContext, words: str) -> CommandResult:
    """Attach pictures; they go with your next message."""
    require_words(words, "/image PATH, or drag a picture into the line", "a picture")
    sources = expand_sources(words)
    try:
        return CommandResult(attached=tuple(context.chat.attach(sources)))
    except ImageError as error:
        if len(sources) == 1:
            raise
        message = f"{error}; none of the {len(sources)} pictures is attached"
        raise ImageError(message, kind=error.kind, hint=error.hint) from error


def paste_picture(context: CommandContext, words: str) -> CommandResult:
    """Attach the picture on the clipboard."""
    refuse_words(words, "paste")
    return CommandResult(attached=tuple(context.chat.attach(["clipboard:"])))


def list_pictures(context: CommandContext, words: str) -> CommandResult:
    """List the pictures of the conversation, and those that go with your next message."""
    refuse_words(words, "images")
    chat, folder = context.chat, context.folder
    chat.count_staged()  # the model may be loaded by now
    lines = []
    for turn_number, turn in enumerate(chat.conversation.turns, start=1):
        is_forgotten = turn_number <= chat.conversation.forgotten
        for picture in turn.pictures:
            state = ""
            if is_forgotten or not picture.is_in_prompt:
                state = "dropped" if picture.is_dropped else "not in the prompt"
            tokens = None if state else chat.picture_tokens(picture.attachment)
            lines.append(
                describe_asked(picture, turn=turn_number, folder=folder, state=state, tokens=tokens)
            )
    first = len(chat.conversation.pictures) + 1
    for number, staged in enumerate(chat.turns.staged, start=first):
        lines.append(describe_staged(number, staged, folder) + GOES_WITH_NEXT)
    return CommandResult(tuple(lines) or ("no pictures yet; `/image PATH` attaches one",))


def drop_picture(context: CommandContext, words: str) -> CommandResult:
    """Take picture N out of what the model sees."""
    chat = context.chat
    number = read_number(words, "/drop N, where `/images` lists the numbers")
    place = number - len(chat.conversation.pictures) - 1
    lines = []
    if 0 <= place < len(chat.turns.staged):
        source = chat.turns.staged.pop(place).source
        # The model counts the pictures that it gets, so each picture that was staged after the
        # dropped one gets a new number.
        later = [
            f"[{new}] {picture_name(staged.source, context.folder)}"
            for new, staged in enumerate(chat.turns.staged[place:], start=number)
        ]
        if later:
            lines = [f"new numbers: {', '.join(later)}"]
    else:
        source = _source(chat, number)
        chat.turns.session.drop(number)
    return CommandResult((f"dropped [{number}] {picture_name(source, context.folder)}", *lines))


def complete_paths(context: CommandContext, line: str) -> Iterable[Candidate]:
    """Complete the path of a picture."""
    return completion.path_candidates(line)


def _source(chat: Chat, number: int) -> str:
    for picture in chat.conversation.pictures:
        if picture.number == number and not picture.is_dropped:
            return picture.source
    raise UsageError(f"there is no picture {number}", hint="`/images` lists them")
