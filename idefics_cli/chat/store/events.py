"""The events of a session: one JSON object for each change of the conversation.

Every event goes through `apply`, whether it is new or read from a file. So a session that is loaded
is equal to the session as it was typed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from idefics_cli.chat.attachments import is_data_uri
from idefics_cli.chat.conversation import ChatPicture, Conversation, Reply, Value
from idefics_cli.chat.sampling_settings import SAMPLING_KEYS, check_setting, with_settings
from idefics_cli.chat.store.pictures import PICTURE_NAME
from idefics_cli.core.errors import IdeficsError, SessionError
from idefics_cli.core.types import Attachment, Finish, Sampling

FORMAT = 1
"""Version of the file format; it increases when older programs cannot read a new file."""

# Any: JSON values, checked where they are used.
Event = dict[str, Any]

_MOST = 2**53  # other JSON readers do not represent larger whole numbers exactly


def to_line(event: Event) -> bytes:
    """Return *event* as one line of JSON."""
    # A file name may have lone surrogates. `backslashreplace` writes them as `\udcXX`, which is
    # also their escape in JSON.
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
    event = {"event": "replied", **asdict(reply)}
    # Other fields of the sampling are left out: a chat has no setting for them, and some are lists,
    # which a session does not accept when it is read.
    event["sampling"] = {key: event["sampling"][key] for key in SAMPLING_KEYS}
    return event


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


def apply(conversation: Conversation | None, event: Event, pictures: Path | None) -> Conversation:
    """Return *conversation* after *event*.

    Args:
        conversation: The conversation so far; None before the first event.
        event: The change.
        pictures: The folder with the pictures. None if the session is not saved; its events then
            contain the pictures as `data:` URIs.

    Raises:
        SessionError: If a later version of this program wrote the event.
        UsageError: If the change is not possible in this conversation.
        KeyError: If a field is missing.
        TypeError: If a field has another type.
        ValueError: If a field has a value that is not allowed.
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
        name=_optional_text(event["name"]),
        system=_optional_text(event["system"]),
        settings={key: check_setting(key, value) for key, value in event["settings"].items()},
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
        "edited": lambda conversation, event: conversation.edited(_count(event["turn"])),
        "dropped": lambda conversation, event: conversation.dropped(_count(event["picture"])),
        "forgot": lambda conversation, event: conversation.without_oldest(_count(event["turns"])),
        "cleared": lambda conversation, _: conversation.cleared(),
        "changed": lambda conversation, event: conversation.changed(
            **{
                key: _optional_text(event[key])
                for key in ("model", "name", "system")
                if key in event
            }
        ),
        "set": lambda conversation, event: conversation.with_setting(
            _text(event["key"]), check_setting(event["key"], event["value"])
        ),
    }
)


def _reply(event: Event) -> Reply:
    # A field that an earlier version did not write has its default.
    names = Reply.__dataclass_fields__.keys() & event.keys() - {"sampling"}
    fields = {name: _REPLY_FIELDS[name](event[name]) for name in names}
    sampling = {key: check_setting(key, v) for key, v in event.get("sampling", {}).items()}
    return Reply(**fields, sampling=with_settings(Sampling(), sampling))


def _picture(record: Event, pictures: Path | None) -> ChatPicture:
    if pictures is None:
        attachment = Attachment(_text(record["attachment"]), _text(record["digest"]))
        if not is_data_uri(attachment.source):
            raise ValueError("not the bytes of a picture")
    else:
        # A session may come from another person, so it must not name files outside of the folder.
        match = PICTURE_NAME.fullmatch(record["file"])
        if match is None:
            raise ValueError("not the name of a stored picture")
        attachment = Attachment(str(pictures / match[0]), match[1])
    return ChatPicture(
        number=0,
        source=_text(record["source"]),
        attachment=attachment,
        width=_count(record["width"]),
        height=_count(record["height"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _count(value: object) -> int:
    # The types are compared, because isinstance(True, int) is True, but True is not a count.
    if type(value) is not int or not 0 <= value <= _MOST:
        raise TypeError("not a count")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        raise TypeError("not a time in seconds")
    return float(value)


def _finish(value: object) -> object:
    if value not in get_args(Finish):
        raise ValueError("not the end of an answer")
    return value


_REPLY_FIELDS: Mapping[str, Callable[[object], Any]] = MappingProxyType(
    {
        "text": _text,
        "finish": _finish,
        "model": _text,
        "prompt_tokens": _count,
        "reused_tokens": _count,
        "new_tokens": _count,
        "seconds": _seconds,
    }
)
