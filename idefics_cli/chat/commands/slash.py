"""The slash commands, one function each; `setting_table.py` says what follows from a row."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from idefics_cli.chat.attachments import StagedPicture
from idefics_cli.chat.commands import completion
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.commands.editor import written_in_editor
from idefics_cli.chat.commands.line import expand, split
from idefics_cli.chat.commands.stats import stats
from idefics_cli.chat.commands.table import COMMANDS, CommandResult, command, unknown_command
from idefics_cli.chat.dialogue import Chat
from idefics_cli.chat.sampling_settings import (
    DISPLAY_KEYS,
    SAMPLING_KEYS,
    parse_setting,
    with_settings,
)
from idefics_cli.config.settings import setting_table
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.sources import describe_source


def _number(words: str, usage: str) -> int:
    if not words.isdecimal() or int(words) < 1:
        raise UsageError(f"`{words}` is no number" if words else "a number is missing", hint=usage)
    return int(words)


def _none(words: str, name: str) -> None:
    if words:
        raise UsageError(f"/{name} takes nothing after it, not `{words}`")


def _nonempty(words: str, usage: str, what: str) -> str:
    if not words:
        raise UsageError(f"{what} is missing", hint=usage)
    return words


# Pictures


def _complete_paths(chat: Chat, line: str) -> Iterable[Candidate]:
    return completion.of_paths(line)


@command("image", "PATH|URL|PATTERN…", complete=_complete_paths)
def _image(chat: Chat, words: str) -> CommandResult:
    """Attach pictures; they go with your next text."""
    _nonempty(words, "/image PATH, or drag a picture into the line", "a picture")
    return CommandResult(attached=tuple(chat.attach(expand(words))))


@command("paste")
def _paste(chat: Chat, words: str) -> CommandResult:
    """Attach the picture on the clipboard."""
    _none(words, "paste")
    return CommandResult(attached=tuple(chat.attach(["clipboard:"])))


@command("images")
def _images(chat: Chat, words: str) -> CommandResult:
    """List the pictures of the conversation, and those that go with your next text."""
    _none(words, "images")
    lines = []
    for number, turn in enumerate(chat.conversation.turns, start=1):
        forgotten = number <= chat.conversation.forgotten
        for picture in turn.pictures:
            state = "" if picture.is_in_prompt and not forgotten else _absence(picture.is_dropped)
            lines.append(
                f"[{picture.number}] {_name(picture.source)},"
                f" {_size(picture.width, picture.height)},"
                f" turn {number}{state or _tokens(chat.picture_tokens(picture.attachment))}"
            )
    first = len(chat.conversation.pictures) + 1
    lines += [describe(first + i, staged) + GOES for i, staged in enumerate(chat.turns.staged)]
    return CommandResult(tuple(lines) or ("no pictures yet; `/image PATH` attaches one",))


def _absence(is_dropped: bool) -> str:
    return ", dropped" if is_dropped else ", not in the prompt"


# A picture of 224 by 225 is square to anybody who looks at it.
_SQUARE = 1.02
GOES = ", goes with your next text"


def describe(number: int, staged: StagedPicture) -> str:
    """Return one line about a staged picture: number, name, size, orientation and cost."""
    return (
        f"[{number}] {_name(staged.source)}, {_size(staged.width, staged.height)}"
        f"{', turned upright' if staged.is_turned else ''}"
        f"{_tokens(staged.tokens)}"
    )


def _tokens(count: int | None) -> str:
    return "" if count is None else f", {count} tokens"


def _size(width: int, height: int) -> str:
    if not width:
        return "of unknown size"
    if max(width, height) <= _SQUARE * min(width, height):
        return f"{width}x{height} square"
    return f"{width}x{height} {'landscape' if width > height else 'portrait'}"


def _name(source: str) -> str:
    """Return what to call a picture: seen from the current folder, if it is in there."""
    folder = os.path.join(os.getcwd(), "")
    return describe_source(source.removeprefix(folder))


@command("drop", "N")
def _drop(chat: Chat, words: str) -> CommandResult:
    """Take picture N out of what the model sees."""
    number = _number(words, "/drop N, where `/images` lists the numbers")
    place = number - len(chat.conversation.pictures) - 1
    if 0 <= place < len(chat.turns.staged):
        name = _name(chat.turns.staged.pop(place).source)
    else:
        name = _source(chat, number)
        chat.turns.session.drop(number)
    return CommandResult((f"dropped [{number}] {name}",))


def _source(chat: Chat, number: int) -> str:
    for picture in chat.conversation.pictures:
        if picture.number == number and not picture.is_dropped:
            return _name(picture.source)
    raise UsageError(f"there is no picture {number}", hint="`/images` lists them")


# Turns


@command("undo")
def _undo(chat: Chat, words: str) -> CommandResult:
    """Take the last question and its answer back."""
    _none(words, "undo")
    _last_turn(chat)
    return CommandResult((f"took back: {_short(chat.turns.undo())}",))


def _last_turn(chat: Chat) -> str:
    if not chat.conversation.turns:
        raise UsageError("nothing was asked yet")
    return chat.conversation.turns[-1].text


def _short(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _complete_sampling(chat: Chat, line: str) -> Iterable[Candidate]:
    return completion.of_words(line, ((f"{k}=", setting_table()[k].help) for k in SAMPLING_KEYS))


@command("retry", "[KEY=VALUE…]", complete=_complete_sampling)
def _retry(chat: Chat, words: str) -> CommandResult:
    """Answer the last question again, if you like with other sampling."""
    _last_turn(chat)
    changes = dict(_pair(word, SAMPLING_KEYS) for word in words.split())
    sampling = with_settings(chat.sampling, changes)
    chat.turns.session.retry()
    lines: tuple[str, ...] = ()
    if sampling.temperature == 0 and not changes:
        lines = ("the likeliest answer stays the same; `/retry temperature=0.7` varies it",)
    return CommandResult(lines, answers=True, sampling=sampling)


@command("edit", "N")
def _edit(chat: Chat, words: str) -> CommandResult:
    """Go back to question N, and ask it in other words; what followed is taken back."""
    count = len(chat.conversation.turns)
    _last_turn(chat)
    number = _number(words or str(count), "/edit N")
    if number > count:
        raise UsageError(f"there is no question {number}", hint=f"the last is {count}")
    chat.turns.editing = number
    lines = () if number == count else (f"what followed question {number} will be taken back",)
    return CommandResult(lines, draft=chat.conversation.turns[number - 1].text)


@command("forget", "N")
def _forget(chat: Chat, words: str) -> CommandResult:
    """Leave the N oldest questions out of what the model sees."""
    number = _number(words, "/forget N")
    left = len(chat.conversation.turns) - chat.conversation.forgotten
    if number >= left:
        raise UsageError(f"there are {left} questions", hint="`/clear` begins anew")
    chat.turns.session.forget(number)
    return CommandResult((f"left out the {number} oldest",))


@command("clear")
def _clear(chat: Chat, words: str) -> CommandResult:
    """Begin anew; model and settings stay."""
    _none(words, "clear")
    chat.turns.clear()
    return CommandResult(("a new beginning",))


@command("editor")
def _editor(chat: Chat, words: str) -> CommandResult:
    """Write your next text in the editor that VISUAL or EDITOR names, and send it."""
    _none(words, "editor")
    text = written_in_editor()
    if not text.strip():
        return CommandResult(("nothing was written",))
    chat.ask(text)
    return CommandResult(answers=True)


# Settings


@command("system", "[TEXT]")
def _system(chat: Chat, words: str) -> CommandResult:
    """Set the instruction that precedes the conversation; `-` takes it away."""
    if not words:
        return CommandResult((chat.conversation.system or "no instruction is set",))
    chat.turns.session.set_system(None if words == "-" else words)
    return CommandResult(("no instruction now",) if words == "-" else ("instruction set",))


def _complete_settings(chat: Chat, line: str) -> Iterable[Candidate]:
    words = [f"{k}=" for k in SAMPLING_KEYS]
    words += [f"{k}={value}" for k in DISPLAY_KEYS for value in ("on", "off")]
    return completion.of_words(
        line, ((w, setting_table()[w.partition("=")[0]].help) for w in words)
    )


@command("set", "[KEY=VALUE…]", complete=_complete_settings)
def _set(chat: Chat, words: str) -> CommandResult:
    """Change how answers are made and shown; alone, list the settings."""
    keys = (*SAMPLING_KEYS, *DISPLAY_KEYS)
    pairs = [_pair(word, keys) for word in words.split()]
    for key, value in pairs:
        chat.turns.session.set(key, value)
    changed = [key for key, _ in pairs]
    return CommandResult(tuple(_shown_setting(chat, key) for key in changed or keys))


def _pair(word: str, keys: tuple[str, ...]) -> tuple[str, str | int | float | bool | None]:
    key, equals, text = word.partition("=")
    key = key.lower().replace("-", "_")
    if key not in keys:
        close = difflib.get_close_matches(key, keys, n=1)
        raise UsageError(
            f"no setting `{key}`",
            hint=f"did you mean `{close[0]}`?" if close else f"there are {', '.join(keys)}",
        )
    if not equals:
        raise UsageError(f"a value for `{key}` is missing", hint=f"{key}=VALUE")
    try:
        return key, parse_setting(key, text) if text else None
    except ValueError as error:
        raise UsageError(f"`{key}` {error}") from None


def _shown_setting(chat: Chat, key: str) -> str:
    value: object = getattr(chat.sampling, key) if key in SAMPLING_KEYS else chat.display(key)
    if value is None:
        shown = "random"
    else:
        shown = ("off", "on")[value] if isinstance(value, bool) else str(value)
    return f"{key} = {shown}"


def _complete_models(chat: Chat, line: str) -> Iterable[Candidate]:
    from idefics_cli.models.hub.registry import MODELS

    return completion.of_words(line, ((m.name, m.summary) for m in MODELS.values() if m.chats))


@command("model", "[NAME]", complete=_complete_models)
def _model(chat: Chat, words: str) -> CommandResult:
    """Go on with another model; the conversation stays."""
    if not words or words == chat.model.name:
        return CommandResult((f"the model is {chat.model.name}",))
    chat.switch_model(words)
    return CommandResult((f"the model is {chat.model.name} now",))


@command("stats")
def _stats(chat: Chat, words: str) -> CommandResult:
    """Tell how much of the context is used, and how fast answers came."""
    _none(words, "stats")
    return CommandResult(tuple(stats(chat)))


# Sessions


@command("save", "NAME")
def _save(chat: Chat, words: str) -> CommandResult:
    """Give the conversation a name, for `/load NAME` and `--session NAME`."""
    chat.turns.session.rename(_nonempty(words, "/save NAME", "a name"))
    return CommandResult((f"saved as {words}",))


@command("load", "NAME", complete=lambda chat, line: _complete_sessions(chat, line))
def _load(chat: Chat, words: str) -> CommandResult:
    """Go on with a conversation that was saved."""
    chat.load(_nonempty(words, "/load NAME", "a name"))
    return CommandResult(tuple(resumed(chat)))


def resumed(chat: Chat) -> list[str]:
    """Return what there is to tell of a conversation that goes on."""
    conversation = chat.conversation
    count, pictures = len(conversation.turns), len(conversation.pictures)
    lines = [
        f"going on with {conversation.title or 'a chat'}: {_counted(count, 'question')}, "
        + _counted(pictures, "picture")
    ]
    last = conversation.turns[-1].reply if conversation.turns else None
    if last is not None:
        lines += [f"> {_short(conversation.turns[-1].text, 200)}", _short(last.text, 400)]
    if last is not None and last.model != chat.model.name:
        lines.append(f"{last.model} answered there; now {chat.model.name} does")
    missing = (f"[{p.number}] {_name(p.source)}" for p in conversation.missing)
    lines += [f"not found any more, so the model does not see it: {name}" for name in missing]
    return lines


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _complete_sessions(chat: Chat, line: str) -> Iterable[Candidate]:
    return completion.of_words(line, chat.saved())


_KINDS = "md|json|html"


def _complete_export(chat: Chat, line: str) -> Iterable[Candidate]:
    if len(line.split()) <= 2 and not line.endswith(" md "):
        return completion.of_words(line, ((name, "") for name in _KINDS.split("|")))
    return completion.of_paths(line)


@command("export", f"{_KINDS} [FILE]", complete=_complete_export)
def _export(chat: Chat, words: str) -> CommandResult:
    """Write the conversation to a file, with its pictures."""
    from idefics_cli.chat.export import FORMATS

    kind, _, name = words.partition(" ")
    if kind not in FORMATS:
        raise UsageError(
            f"`{kind}` is no format" if kind else "a format is missing",
            hint=f"/export {_KINDS} [FILE]",
        )
    path = Path((split(name) or [f"chat.{kind}"])[0]).expanduser()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(FORMATS[kind](chat.conversation))
    except FileExistsError:
        raise UsageError(f"`{path}` is there already", hint=f"/export {kind} OTHER_FILE") from None
    except OSError as error:
        raise IdeficsError(f"cannot write `{path}`: {error.strerror or error}") from error
    return CommandResult((f"wrote {path}",))


@command("help", "[COMMAND]", complete=lambda chat, line: _complete_names(line))
def _help(chat: Chat, words: str) -> CommandResult:
    """List the commands."""
    if words:
        found = COMMANDS.get(words.removeprefix("/"))
        if found is None:
            raise unknown_command(words)
        return CommandResult((f"{found.shown}: {found.summary}",))
    return CommandResult(_KEYS, rows=tuple((c.shown, c.summary) for c in COMMANDS.values()))


_KEYS = (
    "A picture dragged into the line, or @PATH, is attached too; [1] in a text is picture 1.",
    'Several lines: Alt-Enter, or """ before and after. Editor: Ctrl-X Ctrl-E. Search: Ctrl-R.',
    "Ctrl-C stops an answer, Ctrl-D leaves.",
)


def _complete_names(line: str) -> Iterable[Candidate]:
    return completion.of_words(line, ((c.name, c.summary) for c in COMMANDS.values()))


@command("exit")
def _exit(chat: Chat, words: str) -> CommandResult:
    """Leave."""
    return CommandResult(is_over=True)
