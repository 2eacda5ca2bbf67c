"""Slash commands about turns: take them back, repeat, edit and forget them."""

from __future__ import annotations

from collections.abc import Iterable

from idefics_cli.chat.commands import completion
from idefics_cli.chat.commands.arguments import read_number, refuse_words
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.commands.settings import read_pair
from idefics_cli.chat.commands.slash_command import CommandContext, CommandResult
from idefics_cli.chat.descriptions import picture_name, shorten
from idefics_cli.chat.dialogue import Chat
from idefics_cli.chat.sampling_settings import SAMPLING_KEYS, with_settings
from idefics_cli.config.settings import setting_table
from idefics_cli.core.errors import UsageError
from idefics_cli.core.text import or_list


def undo_turn(context: CommandContext, words: str) -> CommandResult:
    """Take back the last question, its pictures and its answer."""
    refuse_words(words, "undo")
    _require_turns(context.chat)
    chat = context.chat
    before = len(chat.turns.staged)
    lines = [f"took back: {shorten(chat.turns.undo().text)}"]
    back = chat.turns.staged[: len(chat.turns.staged) - before]
    if back:
        first = len(chat.conversation.pictures) + 1
        names = [
            f"[{number}] {picture_name(staged.source, context.folder)}"
            for number, staged in enumerate(back, first)
        ]
        go, drop = ("goes", f"{first}` takes it") if len(back) == 1 else ("go", "N` takes one")
        lines.append(f"{or_list(names, 'and')} {go} with your next message")
        lines.append(f"`/images` lists, `/drop {drop} out")
    return CommandResult(tuple(lines))


def retry_turn(context: CommandContext, words: str) -> CommandResult:
    """Answer the last question again, if you like with other sampling."""
    chat = context.chat
    _require_turns(chat)
    changes = dict(read_pair(word, SAMPLING_KEYS) for word in words.split())
    sampling = with_settings(chat.sampling, changes)
    chat.turns.session.retry()
    lines: tuple[str, ...] = ()
    if sampling.temperature == 0 and not changes:
        lines = ("the same prompt gets the same answer; `/retry temperature=0.7` varies it",)
    return CommandResult(lines, answers=True, sampling=sampling)


def edit_turn(context: CommandContext, words: str) -> CommandResult:
    """Go back to question N and ask it in other words; later turns are taken back."""
    chat = context.chat
    count = _require_turns(chat)
    number = read_number(words or str(count), "/edit N")
    if number > count:
        raise UsageError(f"there is no question {number}", hint=f"the last is {count}")
    chat.turns.editing = number
    lines = () if number == count else (f"the turns after question {number} will be taken back",)
    return CommandResult(lines, draft=chat.conversation.turns[number - 1].text)


def forget_turns(context: CommandContext, words: str) -> CommandResult:
    """Leave the N oldest questions out of what the model sees."""
    conversation = context.chat.conversation
    left = _require_turns(context.chat) - conversation.forgotten
    number = read_number(words, "/forget N")
    if number >= left:
        questions = "is 1 question" if left == 1 else f"are {left} questions"
        raise UsageError(f"there {questions}", hint="`/clear` starts a new conversation")
    context.chat.turns.session.forget(number)
    questions = "question" if number == 1 else f"{number} questions"
    return CommandResult((f"left out the oldest {questions}",))


def clear_turns(context: CommandContext, words: str) -> CommandResult:
    """Start a new conversation; model and settings stay."""
    refuse_words(words, "clear")
    staged = context.chat.turns.staged
    names = [picture_name(each.source, context.folder) for each in staged]
    former = context.chat.start_new()
    back = f"; `/load {former}` opens the former one" if former else ""
    dropped = (f"no longer attached: {', '.join(names)}",) if names else ()
    return CommandResult((f"started a new conversation{back}", *dropped))


def copy_answer(context: CommandContext, words: str) -> CommandResult:
    """Copy the last answer, or the answer to question N, to the clipboard."""
    count = _require_turns(context.chat)
    number = read_number(words or str(count), "/copy N")
    if number > count:
        raise UsageError(f"there is no question {number}", hint=f"the last is {count}")
    reply = context.chat.conversation.turns[number - 1].reply
    if reply is None or not reply.text.strip():
        raise UsageError(f"the answer to question {number} is empty")
    return CommandResult(copied=reply.text.strip("\n"))


def write_question(context: CommandContext, words: str) -> CommandResult:
    """Write your next message in the editor that VISUAL or EDITOR names, and send it."""
    refuse_words(words, "editor")
    return CommandResult(wants_editor=True)


def complete_sampling(context: CommandContext, line: str) -> Iterable[Candidate]:
    """Complete the name of a sampling setting."""
    return completion.word_candidates(
        line, ((f"{key}=", setting_table()[key].help) for key in SAMPLING_KEYS)
    )


def _require_turns(chat: Chat) -> int:
    """Return the number of turns, of which there is at least one."""
    if not chat.conversation.turns:
        raise UsageError("no question was asked yet")
    return len(chat.conversation.turns)
