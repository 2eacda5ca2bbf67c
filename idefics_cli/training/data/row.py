"""A row of training data: a conversation, and which of its answers are learned."""

from __future__ import annotations

from dataclasses import dataclass

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
