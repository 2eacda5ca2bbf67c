"""The events of a session: one JSON object for each change of the conversation.

Every event goes through `apply`, whether it was typed just now or read from a file. So a session
that is loaded equals the session that was typed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from idefics_cli.chat.conversation import ChatPicture, Conversation, Reply, Value
from idefics_cli.core.errors import IdeficsError, SessionError
from idefics_cli.core.types import Attachment, Sampling

FORMAT = 1
"""Version of the file format; it increases when older programs cannot read a new file."""

# Any: JSON values, checked where they are used.
Event = dict[str, Any]

# The name of a stored picture. A session may come from another person, and must not name any
# other file.
_STORED = re.compile(r"([0-9a-f]{64})\.[a-z0-9]{1,5}")


def to_line(event: Event) -> bytes:
    """Return *event* as one line of JSON."""
    # A lone surrogate, from a file name, becomes `\udcXX`, which is also its escape in JSON.
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"


def from_line(line: bytes) -> Event:
    """Return the event of a line.

    Raises:
        ValueError: If the line is not an event.
    """
    event = json.loads(line.decode("utf-8"))
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise ValueError("not an event")
    return event


def started(
    model: str, name: str | None, system: str | None, settings: Mapping[str, Value]
) -> Event:
    """Return the first event of a session."""
    return {
        "event": "started",
        "format": FORMAT,
        "model": model,
        "name": name,
        "system": system,
        "settings": dict(settings),
    }


def replied(reply: Reply) -> Event:
    """Return the event of *reply*."""
    return {"event": "replied", **asdict(reply)}


def replay(events: Iterable[Event], pictures: Path) -> Conversation:
    """Return the conversation after all *events*.

    Args:
        events: All events of a session, from the first on.
        pictures: The folder that holds the pictures.

    Raises:
        SessionError: If an event is unknown or damaged; the message counts lines from 1.
    """
    conversation: Conversation | None = None
    for number, event in enumerate(events, 1):
        try:
            conversation = apply(conversation, event, pictures)
        except SessionError:
            raise
        except (IdeficsError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise SessionError(f"line {number} is damaged ({event.get('event')})") from error
    if conversation is None:
        raise SessionError("it is empty")
    return conversation


def apply(conversation: Conversation | None, event: Event, pictures: Path) -> Conversation:
    """Return *conversation* after *event*; before the first event there is none.

    Raises:
        SessionError: If a later version of this program wrote the event.
        UsageError: If the change is not possible in this conversation.
        KeyError: If a field is missing; likewise `TypeError` and `ValueError`.
    """
    name = event["event"]
    if name == "started":
        return _started(event)
    if conversation is None:
        raise ValueError("the first event is missing")
    if name == "asked":
        asked = [_picture(record, pictures) for record in event["pictures"]]
        return conversation.asked(_text(event["text"]), asked)
    change = _CHANGES.get(name)
    if change is None:
        raise _too_new(f"it has an unknown event `{name}`")
    return change(conversation, event)


def _started(event: Event) -> Conversation:
    if event["format"] != FORMAT:
        raise _too_new(f"it has format {event['format']}, and this version reads {FORMAT}")
    return Conversation(
        model=_text(event["model"]),
        name=event["name"],
        system=event["system"],
        settings=dict(event["settings"]),
    )


def _too_new(reason: str) -> SessionError:
    return SessionError(
        f"a later version of this program wrote it: {reason}",
        hint="pip install --upgrade idefics-cli",
    )


_CHANGES: Mapping[str, Callable[[Conversation, Event], Conversation]] = MappingProxyType(
    {
        "replied": lambda conversation, event: conversation.replied(_reply(event)),
        "rolled_back": lambda conversation, _: conversation.rolled_back(),
        "retried": lambda conversation, _: conversation.retried(),
        "undone": lambda conversation, _: conversation.undone(),
        "edited": lambda conversation, event: conversation.edited(event["turn"]),
        "dropped": lambda conversation, event: conversation.dropped(event["picture"]),
        "forgot": lambda conversation, event: conversation.without_oldest(event["turns"]),
        "cleared": lambda conversation, _: conversation.cleared(),
        "changed": lambda conversation, event: conversation.changed(
            **{key: event[key] for key in ("model", "name", "system") if key in event}
        ),
        "set": lambda conversation, event: conversation.with_setting(event["key"], event["value"]),
    }
)


def _reply(event: Event) -> Reply:
    # A field that an earlier version did not write has its default.
    names = Reply.__dataclass_fields__.keys() & event.keys() - {"sampling"}
    fields = {name: event[name] for name in names}
    _text(event["text"])
    return Reply(**fields, sampling=Sampling(**event.get("sampling", {})))


def _picture(record: Event, pictures: Path) -> ChatPicture:
    if "attachment" in record:  # of a session that is not saved
        attachment = Attachment(record["attachment"], record["digest"])
    else:
        match = _STORED.fullmatch(record["file"])
        if match is None:
            raise ValueError("not the name of a stored picture")
        attachment = Attachment(str(pictures / match[0]), match[1])
    return ChatPicture(
        number=0,
        source=_text(record["source"]),
        attachment=attachment,
        width=int(record["width"]),
        height=int(record["height"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
