"""A row of training data: a conversation, and which of its answers are learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import Message, Mode


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One conversation of the training data.

    Attributes:
        key: The name of the row in messages, such as `photos/a.jpg` or `chats.jsonl:12`.
        messages: The conversation. Pictures are attachments of its user messages. For a base
            model, it is one user message, with pictures and perhaps text, and one answer.
        learned: For each message, whether it is an answer that is learned.
        mode: "chat", or "complete" for a base model.
    """

    key: str
    messages: tuple[Message, ...]
    learned: tuple[bool, ...]
    mode: Mode = "chat"


Reason: TypeAlias = Literal[
    "wrong row",
    "unreadable picture",
    "failed caption",
    "cut caption",
    "no caption",
    "no answer",
    "further line",
    "linked folder",
    "too long",
]
"""Why a row is left out. The first two are faults of the data, which the user may want to mend."""

FAULTS: tuple[Reason, ...] = ("wrong row", "unreadable picture")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is not trained on.

    Attributes:
        key: The name of the row in messages.
        reason: Why it is left out.
        error: What is wrong with it; None if the reason says all.
    """

    key: str
    reason: Reason
    error: IdeficsError | None = None


RowResult: TypeAlias = TrainingRow | LeftOut
