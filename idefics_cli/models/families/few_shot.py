"""Few-shot prompts: examples with their answers before the question; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from idefics_cli.core.types import Attachment, Message, Mode, Part


@dataclass(frozen=True, slots=True)
class Shot:
    """One example.

    Attributes:
        parts: The prompt with the picture of the example.
        answer: What the model should answer.
    """

    parts: tuple[Part, ...]
    answer: str

    @property
    def pictures(self) -> tuple[Attachment, ...]:
        """The pictures of the prompt."""
        return tuple(part for part in self.parts if isinstance(part, Attachment))


def with_shots(
    shots: Sequence[Shot], question: tuple[Part, ...], mode: Mode
) -> tuple[Message, ...]:
    """Return the messages that ask *question* after the examples.

    In a chat, each example is a turn of the user and one of the assistant. A raw prompt has each
    example with its answer on lines of its own, as the documentation of IDEFICS shows for base
    models (docs/source/en/tasks/idefics.md of transformers, "Few-shot prompting").
    """
    if mode == "chat":
        turns = (
            (Message("user", shot.parts), Message("assistant", (shot.answer,))) for shot in shots
        )
        return (*(message for turn in turns for message in turn), Message("user", question))
    parts: list[Part] = []
    for shot in shots:
        last = shot.parts[-1] if shot.parts else ""
        is_apart = isinstance(last, str) and (last[-1:].isspace() or shot.answer[:1].isspace())
        parts += [*shot.parts, f"{'' if is_apart else ' '}{shot.answer}\n"]
    return (Message("user", (*parts, *question)),)
