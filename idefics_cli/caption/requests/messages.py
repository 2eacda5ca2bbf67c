"""Conversations of requests: they end with a question."""

from __future__ import annotations

from idefics_cli.core.conversation.messages import place_pictures, read_messages
from idefics_cli.core.conversation.pictures import RowPictures
from idefics_cli.core.errors import PromptError
from idefics_cli.core.types import Attachment, Message


def conversation(
    value: object,
    name: str,
    pictures: RowPictures,
    *,
    attached: tuple[Attachment, ...],
    system: str | None,
) -> tuple[Message, ...]:
    """Return the conversation that *value* holds, which ends with a user message.

    Args:
        value: The value of `messages` or `conversations`.
        name: The name of the value in messages.
        pictures: Collects the pictures that stand in the conversation.
        attached: Pictures that the row names outside of it, for its `<image>`.
        system: Instruction for a conversation that has none.

    Raises:
        PromptError: If it is not a conversation that a model can answer.
    """
    messages = read_messages(value, name, pictures)
    if messages[-1].role != "user":
        raise PromptError(
            f"`{name}` ends with a message of the {messages[-1].role}, not with a question",
            hint=f"remove it, as `jq -c '.{name} |= .[:-1]'` does" if len(messages) > 1 else None,
        )
    filled = place_pictures(messages, value, attached)
    if not filled[-1].text.strip():
        raise PromptError(f"the last message of `{name}` has no text")
    if system and filled[0].role != "system":
        return (Message("system", (system,)), *filled)
    return filled
