"""Prompts in which `<image>` is the place of a picture; without torch."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.core.conversation.marks import fill_marks
from idefics_cli.core.errors import PromptError
from idefics_cli.core.types import Attachment, GenerationRequest, Part
from idefics_cli.models.families.spec import IMAGE_TOKEN


def raw_parts(prompt: str, pictures: Sequence[Attachment]) -> tuple[Part, ...]:
    """Return the parts of *prompt*, with one of *pictures* in place of each `<image>`, in order.

    Raises:
        PromptError: If the prompt has more or fewer `<image>` than there are pictures.
    """
    check_count(prompt.count(IMAGE_TOKEN), len(pictures))
    return fill_marks(prompt, pictures)


def raw_text(request: GenerationRequest) -> str:
    """Return the raw prompt of *request* as text, with `<image>` for each picture.

    Raises:
        PromptError: If the text itself contains further `<image>`.
    """
    parts = [part for message in request.messages for part in message.parts]
    text = "".join(part if isinstance(part, str) else IMAGE_TOKEN for part in parts)
    check_count(text.count(IMAGE_TOKEN), len(request.attachments))
    return text


def is_answered(request: GenerationRequest) -> bool:
    """Return whether *request* ends with an answer, as a conversation to train on does."""
    return request.messages[-1].role == "assistant"


def check_count(tokens: int, pictures: int) -> None:
    """Raise a PromptError if a raw prompt has not one of *tokens* for each of its *pictures*."""
    if tokens != pictures:
        given = "1 picture is" if pictures == 1 else f"{pictures} pictures are"
        raise PromptError(
            f"the prompt has {tokens} `{IMAGE_TOKEN}`, and {given} given",
            hint=f"write `{IMAGE_TOKEN}` where each picture belongs, and `-i` for each",
        )
