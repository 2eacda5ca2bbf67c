"""Conversations: OpenAI's `messages`, LLaVA's and ShareGPT's `conversations`.

A row of OpenAI has its pictures in its messages. One of LLaVA (`image`) or of ShareGPT, as
LLaMA-Factory reads it (`images`), names them beside its messages, and `<image>` is their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from idefics_cli.core.conversation.messages import place_pictures, read_messages
from idefics_cli.core.conversation.pictures import RowPictures
from idefics_cli.core.errors import PromptError, UsageError
from idefics_cli.core.json_objects import JsonObject, checked_text, kind_of
from idefics_cli.core.types import Message
from idefics_cli.training.data.files import read_file
from idefics_cli.training.data.options import ReadOptions
from idefics_cli.training.data.places import PicturePlaces
from idefics_cli.training.data.row import LeftOut, RowResult, TrainingRow
from idefics_cli.training.data.table import picture_column, without_bytes

_NAMES = ("messages", "conversations")
_UNSUPPORTED = ("tools", "functions")


def read_chats(path: Path, options: ReadOptions) -> Iterator[RowResult]:
    """Yield the conversations of the file *path*.

    Raises:
        UsageError: If the model does not chat.
    """
    if options.mode == "complete":
        raise UsageError(
            f"`{path}` has conversations, and a base model completes prompts",
            hint="train on captions, or choose a model that chats",
        )
    folder = PicturePlaces(path, options.images)
    for row in read_file(path):
        try:
            if row.fault is not None:
                raise row.fault
            yield _conversation(row.key, without_bytes(row.cells), options, folder)
        except PromptError as error:
            yield LeftOut(row.key, "wrong row", error)


def is_chat(row: JsonObject, options: ReadOptions) -> bool:
    """Whether *row* is a conversation."""
    return any(row.get(name) is not None for name in _NAMES)


def _conversation(
    key: str, row: JsonObject, options: ReadOptions, folder: PicturePlaces
) -> RowResult:
    name = next((name for name in _NAMES if row.get(name) is not None), None)
    if name is None:
        raise PromptError("no conversation", hint="a row has `messages` or `conversations`")
    if given := next((one for one in _UNSUPPORTED if row.get(one)), None):
        raise PromptError(f"`{given}` is not supported")
    pictures, value = RowPictures(folder.resolve), row[name]
    messages = read_messages(value, name, pictures, labels=("weight", "index"))
    weights = _weights(value, name)
    _check_order(value, name)
    # `<image>` in an answer is plain text, so only the other messages get pictures.
    asked = tuple(m for m in messages if m.role != "assistant")
    filled = iter(
        place_pictures(asked, value, pictures.of_columns(row, picture_column(row, options)))
    )
    messages = tuple(m if m.role == "assistant" else next(filled) for m in messages)
    learned = _learned(messages, weights, options)
    system = row.get("system")
    if system and messages[0].role != "system":
        text = checked_text(system, "system")
        messages, learned = (Message("system", (text,)), *messages), (False, *learned)
    if not any(learned):
        return LeftOut(key, "no answer")
    return TrainingRow(key, messages, learned)


def _weights(value: object, name: str) -> list[bool]:
    """Return for each message whether its weight, as OpenAI's format has it, is not 0."""
    weights = []
    for at, message in enumerate(value if isinstance(value, list) else ()):
        weight = message.get("weight")
        if weight not in (None, 0, 1):
            shown = weight if isinstance(weight, (int, float)) else kind_of(weight)
            raise PromptError(f"`{name}[{at}].weight` is {shown}", hint="it is 0 or 1")
        weights.append(weight != 0)
    return weights


def _check_order(value: object, name: str) -> None:
    """Check that parts refer to the pictures of their row in order.

    A part of data sets for TRL has the `index` of its picture.
    """
    contents = [m.get("content") for m in value] if isinstance(value, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    given = [p.get("index") for p in parts if isinstance(p, dict) and p.get("type") == "image"]
    if any(index is not None for index in given) and given != list(range(len(given))):
        raise PromptError(
            f"the pictures of `{name}` have other `index` than 0, 1, 2 and so on",
            hint="list the pictures of `images` in the order of the conversation",
        )


def _learned(
    messages: Sequence[Message], weights: Sequence[bool], options: ReadOptions
) -> tuple[bool, ...]:
    learned = [
        message.role == "assistant" and has_weight and bool(message.text.strip())
        for message, has_weight in zip(messages, weights, strict=True)
    ]
    if options.learn == "last" and any(learned):
        last = max(at for at, is_learned in enumerate(learned) if is_learned)
        learned = [at == last for at in range(len(learned))]
    return tuple(learned)
