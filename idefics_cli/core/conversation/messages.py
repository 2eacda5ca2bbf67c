"""Conversations of rows: messages of OpenAI and of transformers, LLaVA and ShareGPT."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from idefics_cli.core.conversation.marks import PICTURE_MARK
from idefics_cli.core.conversation.pictures import PICTURE_KEYS, RowPictures, placed
from idefics_cli.core.errors import PromptError
from idefics_cli.core.json_objects import checked_text, kind_of
from idefics_cli.core.types import Attachment, Message, Part, Role

_ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "system": "system",
        "developer": "system",
        "user": "user",
        "human": "user",
        "assistant": "assistant",
        "gpt": "assistant",
        "bot": "assistant",
        "model": "assistant",
    }
)
"""The role of a message by the name of its sender."""

_PICTURE_TYPES = ("image_url", "image", "input_image", "video_url", "video")
_TEXT_TYPES = ("text", "input_text", "output_text")
# `cache_control` and `name` do not change the answer, so they are accepted and ignored.
_PART_KEYS = frozenset({"type", "text", "detail", *PICTURE_KEYS})
_LABELS = frozenset({"cache_control", "name"})


def read_messages(
    value: object, name: str, pictures: RowPictures, *, labels: Collection[str] = ()
) -> tuple[Message, ...]:
    """Return the messages of the conversation that *value* holds.

    A `<image>` in a text is still text; see `place_pictures`.

    Args:
        value: The value of `messages` or `conversations`.
        name: The name of the value in messages.
        pictures: Collects the pictures that stand in the conversation.
        labels: Names of further fields that a message or a part may have.

    Raises:
        PromptError: If it is not a conversation.
    """
    if not isinstance(value, list) or not value:
        raise PromptError(f"`{name}` is not a list of messages")
    known = _LABELS.union(labels)
    return tuple(_message(one, f"{name}[{at}]", pictures, known) for at, one in enumerate(value))


def place_pictures(
    messages: Sequence[Message], value: object, attached: Sequence[Attachment]
) -> tuple[Message, ...]:
    """Return *messages* with the pictures *attached* in place of `<image>`; see `placed`.

    Args:
        messages: Result of `read_messages`.
        value: The value from which they were read.
        attached: Pictures that the row names outside of its conversation.
    """
    is_llava = isinstance(value, list) and any(isinstance(m, dict) and "from" in m for m in value)
    return placed(messages, attached, drops_breaks=is_llava)


def _message(value: object, name: str, pictures: RowPictures, labels: Collection[str]) -> Message:
    if not isinstance(value, dict):
        raise PromptError(f"`{name}` is not a message but {kind_of(value)}")
    sender, content = ("from", "value") if "from" in value else ("role", "content")
    for key, extra in value.items():
        # Messages that were copied from the answer of an API have further keys. These are accepted
        # if they are empty or null.
        if key not in (sender, content) and key not in labels and extra:
            raise PromptError(f"unknown field `{name}.{key}`", hint="leave it out")
    who = value.get(sender)
    role = _ROLES.get(who) if isinstance(who, str) else None
    if role is None:
        shown = f"`{who[:40]}`" if isinstance(who, str) else kind_of(who)
        raise PromptError(
            f"`{name}.{sender}` is {shown}", hint="the roles are system, user and assistant"
        )
    parts = _parts(value.get(content), f"{name}.{content}", pictures, labels)
    if role != "user" and any(isinstance(part, Attachment) for part in parts):
        raise PromptError(f"a picture in `{name}`: only user messages have pictures")
    return Message(role, parts)


def _parts(
    value: object, name: str, pictures: RowPictures, labels: Collection[str]
) -> tuple[Part, ...]:
    if isinstance(value, str):
        return (checked_text(value, name),)
    if not isinstance(value, list):
        raise PromptError(f"`{name}` is neither text nor a list of parts but {kind_of(value)}")
    return tuple(_part(one, f"{name}[{at}]", pictures, labels) for at, one in enumerate(value))


def _part(value: object, name: str, pictures: RowPictures, labels: Collection[str]) -> Part:
    if isinstance(value, str):
        return checked_text(value, name)
    if not isinstance(value, dict):
        raise PromptError(f"`{name}` is not a part but {kind_of(value)}")
    given = {key: one for key, one in value.items() if one is not None and key not in labels}
    if unknown := next((key for key in given if key not in _PART_KEYS), None):
        raise PromptError(f"unknown field `{name}.{unknown}`", hint="leave it out")
    kind = given.pop("type", None)
    if kind in _TEXT_TYPES:
        return checked_text(given.get("text"), f"{name}.text")
    if kind in _PICTURE_TYPES:
        # In a table, every part has all columns.
        if given.get("text") == "":
            del given["text"]
        # `{"type": "image"}` without further keys marks the place of a picture that the row names
        # elsewhere.
        return pictures.picture(given, name) if given else PICTURE_MARK
    shown = f"`{kind[:40]}`" if isinstance(kind, str) else kind_of(kind)
    raise PromptError(f"`{name}.type` is {shown}", hint="parts are `text`, `image_url` and `image`")
