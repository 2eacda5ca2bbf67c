"""Slash commands about the instruction and the settings of a conversation."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from idefics_cli.chat.commands import completion
from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.chat.commands.slash_command import CommandContext, CommandResult
from idefics_cli.chat.descriptions import describe_setting
from idefics_cli.chat.dialogue import Chat
from idefics_cli.chat.sampling_settings import (
    DETAIL_KEYS,
    DISPLAY_KEYS,
    SAMPLING_KEYS,
    SCHEMA_KEY,
    parse_setting,
)
from idefics_cli.config.settings import setting_table
from idefics_cli.core.errors import UsageError
from idefics_cli.engine.schema.form import schema_form

_KEYS = (*SAMPLING_KEYS, *DETAIL_KEYS, *DISPLAY_KEYS)


def set_instruction(context: CommandContext, words: str) -> CommandResult:
    """Set the instruction that precedes the conversation; `-` removes it."""
    chat = context.chat
    if not words:
        return CommandResult((chat.conversation.system or "no instruction is set",))
    chat.turns.session.set_system(None if words == "-" else words)
    return CommandResult(("instruction removed" if words == "-" else "instruction set",))


def change_settings(context: CommandContext, words: str) -> CommandResult:
    """Change how answers are made and shown; without words, list the settings."""
    chat = context.chat
    pairs = [read_pair(word, _KEYS) for word in words.split()]
    if details := {key: value for key, value in pairs if key in DETAIL_KEYS}:
        chat.change_detail(details)
    for key, value in pairs:
        if key not in DETAIL_KEYS:
            chat.turns.session.set_setting(key, value)
    changed = [key for key, _ in pairs]
    return CommandResult(tuple(_shown(chat, key) for key in changed or _KEYS))


def set_schema(context: CommandContext, words: str) -> CommandResult:
    """Let answers be JSON with these fields, or by a JSON Schema or its file; `-` ends it."""
    chat = context.chat
    if not words:
        form = chat.form
        text = "answers are free text; `/schema caption, people int` makes them JSON"
        return CommandResult((form.constraint.text if form else text,))
    if words == "-":
        chat.turns.session.set_setting(SCHEMA_KEY, None)
        return CommandResult(("answers are free text",))
    # A file may change later, so the session keeps the schema itself.
    form = schema_form(words, max_new_tokens=chat.sampling.max_new_tokens)
    chat.turns.session.set_setting(SCHEMA_KEY, form.constraint.text)
    names = ", ".join(column.name for column in form.columns)
    return CommandResult((f"answers are JSON with {names}" if names else "answers are JSON",))


def complete_settings(context: CommandContext, line: str) -> Iterable[Candidate]:
    """Complete the name of a setting, or its value if that is on or off."""
    words = [f"{key}=" for key in (*SAMPLING_KEYS, "longest_edge")]
    words += [f"{key}={value}" for key in ("splitting", *DISPLAY_KEYS) for value in ("on", "off")]
    return completion.word_candidates(
        line, ((word, setting_table()[word.partition("=")[0]].help) for word in words)
    )


def read_pair(word: str, keys: tuple[str, ...]) -> tuple[str, str | int | float | bool | None]:
    """Return the key and the value of a word `key=value`; the value is None after `key=`.

    Raises:
        UsageError: If the key is not one of *keys*, or the value is missing or wrong.
    """
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


def _shown(chat: Chat, key: str) -> str:
    if key in DETAIL_KEYS:
        value: object = getattr(chat.conversation.detail, key)
        return f"{key} = as at the start" if value is None else describe_setting(key, value)
    value = getattr(chat.sampling, key) if key in SAMPLING_KEYS else chat.display(key)
    return describe_setting(key, value)
