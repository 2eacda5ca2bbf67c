"""The lines that describe pictures and conversations to a person."""

from __future__ import annotations

import os
from pathlib import Path

from idefics_cli.chat.attachments import StagedPicture
from idefics_cli.chat.conversation import ChatPicture, Conversation
from idefics_cli.core.paths import display_path
from idefics_cli.core.sources import describe_source
from idefics_cli.core.units import counted

GOES_WITH_NEXT = ", goes with your next message"
# A picture counts as square up to this ratio of its sides, because the difference is not visible.
_SQUARE = 1.02


def describe_staged(number: int, staged: StagedPicture, folder: Path) -> str:
    """Return one line about a staged picture: number, name, size, orientation, page and tokens.

    Args:
        number: The number of the picture in the conversation.
        staged: The picture.
        folder: The current folder; the names of files in it are shown without it.
    """
    return (
        f"[{number}] {picture_name(staged.source, folder)}, {_size(staged.width, staged.height)}"
        f"{', turned upright' if staged.is_turned else ''}"
        f"{f', {staged.part}' if staged.part else ''}"
        f"{_cost(staged.tokens)}"
    )


def describe_asked(
    picture: ChatPicture, *, turn: int, folder: Path, state: str, tokens: int | None
) -> str:
    """Return one line about a picture of an earlier turn: number, name, size, turn and tokens.

    Args:
        picture: The picture.
        turn: The number of its turn.
        folder: As for `describe_staged`.
        state: Why it is not in the prompt; "" if it is.
        tokens: The tokens that it takes of the context; None if unknown.
    """
    return (
        f"[{picture.number}] {picture_name(picture.source, folder)},"
        f" {_size(picture.width, picture.height)},"
        f" turn {turn}{f', {state}' if state else _cost(tokens)}"
    )


def describe_resumed(conversation: Conversation, *, model: str, folder: Path) -> list[str]:
    """Return lines about a conversation that is continued: its size, what is in force, its end.

    Args:
        conversation: The conversation.
        model: The name of the model that answers from now on.
        folder: As for `describe_staged`.
    """
    count, pictures = len(conversation.turns), len(conversation.pictures)
    name = f"`{conversation.name}`" if conversation.name else "a chat"
    lines = [f"continuing {name}: {counted(count, 'question')}, " + counted(pictures, "picture")]
    if conversation.system:
        lines.append(f"instruction: {shorten(conversation.system, 200)}")
    changed = {key: value for key, value in conversation.settings.items() if value is not None}
    if changed:
        lines.append("settings: " + ", ".join(map(describe_setting, changed, changed.values())))
    last = conversation.turns[-1].reply if conversation.turns else None
    if last is not None:
        lines += [f"> {shorten(conversation.turns[-1].text, 200)}", shorten(last.text, 400)]
    if last is not None and last.model != model:
        lines.append(f"{last.model} answered until now; {model} answers from now on")
    missing = (f"[{p.number}] {picture_name(p.source, folder)}" for p in conversation.missing)
    lines += [f"no longer found, so the model does not see it: {name}" for name in missing]
    return lines


def describe_setting(key: str, value: object) -> str:
    """Return the setting *key* with its value, such as `plain = on`; None is a random value."""
    if value is None:
        return f"{key} = random"
    return f"{key} = {('off', 'on')[value] if isinstance(value, bool) else value}"


def picture_name(source: str, folder: Path) -> str:
    """Return a short name of a picture.

    A file in *folder* is named without the folder, another one in the home folder with `~`.
    """
    name = source.removeprefix(os.path.join(folder, ""))
    return describe_source(display_path(Path(name)) if os.path.isabs(name) else name)


def shorten(text: str, width: int = 60) -> str:
    """Return *text* on one line of at most *width* characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _cost(tokens: int | None) -> str:
    return "" if tokens is None else f", {counted(tokens, 'token')}"


def _size(width: int, height: int) -> str:
    if not width:
        return "of unknown size"
    if max(width, height) <= _SQUARE * min(width, height):
        return f"{width}x{height} square"
    return f"{width}x{height} {'landscape' if width > height else 'portrait'}"
