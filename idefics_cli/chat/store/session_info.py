"""The description of a session in a list, made without opening the session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from idefics_cli.chat.conversation import Conversation
from idefics_cli.chat.store.events import Event

# A date outside of these years cannot be shown in every time zone, and is not the time of a chat.
_YEARS = range(1970, 9999)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session in a list.

    Attributes:
        id: Eight letters and digits.
        name: The name that the user gave it, if any.
        title: The name, or the first question on one line.
        model: The name of its current model.
        created: Time of the first event.
        updated: Time of the last event.
        turns: Number of questions with an answer.
        pictures: Number of pictures.
        size_bytes: Size of its file in bytes, without the pictures.
        problem: The reason why it cannot be opened, if any.
    """

    id: str
    name: str | None
    title: str
    model: str
    created: datetime
    updated: datetime
    turns: int = 0
    pictures: int = 0
    size_bytes: int = 0
    problem: str | None = None


def describe_session(path: Path, conversation: Conversation, log: Sequence[Event]) -> SessionInfo:
    """Return the facts that a list of sessions shows about one session.

    Args:
        path: The file of the session.
        conversation: The conversation of the session.
        log: The events of the session.

    Raises:
        FileNotFoundError: If the file was removed in the meantime.
    """
    status = path.stat()
    return SessionInfo(
        id=path.stem,
        name=conversation.name,
        title=conversation.title,
        model=conversation.model,
        created=_time(log[0], status.st_mtime),
        updated=_time(log[-1], status.st_mtime),
        turns=sum(turn.reply is not None for turn in conversation.turns),
        pictures=len(conversation.pictures),
        size_bytes=status.st_size,
    )


def describe_damaged(path: Path, problem: str) -> SessionInfo:
    """Return the row of a session that cannot be read for the reason *problem*.

    Raises:
        FileNotFoundError: If it was removed in the meantime.
    """
    status = path.stat()
    changed = _from_timestamp(status.st_mtime)
    return SessionInfo(
        id=path.stem,
        name=None,
        title="",
        model="",
        created=changed,
        updated=changed,
        size_bytes=status.st_size,
        problem=problem,
    )


def _time(event: Event, otherwise: float) -> datetime:
    try:
        found = datetime.fromisoformat(event["at"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError, OverflowError):
        return _from_timestamp(otherwise)
    return found if found.year in _YEARS else _from_timestamp(otherwise)


def _from_timestamp(seconds: float) -> datetime:
    try:
        found = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)
    return found if found.year in _YEARS else datetime.fromtimestamp(0, UTC)
