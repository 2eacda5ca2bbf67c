"""The question about a picture with a caption: `--prompt`, with its fields filled in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from idefics_cli.caption.inputs.templates import FIELDS, field_values, parse_template
from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.errors import UsageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.models.families.picture_marks import read_marks

if TYPE_CHECKING:
    from idefics_cli.training.examples import TrainingExample


class RowPrompts:
    """Makes the question of each row from the prompt *text*, as `idefics caption` makes it.

    Args:
        text: The prompt, with fields such as `{stem}`.
        limits: Limits for the pictures that are opened for a field.

    Attributes:
        text: The prompt.
        is_used: Whether a row has got the prompt.

    Raises:
        UsageError: If the prompt has an unknown field, or `{existing}`, which is the answer.
    """

    def __init__(self, text: str, limits: ImageLimits) -> None:
        self.text, self._limits = text, limits
        self.is_used = False
        if "existing" in parse_template(text).fields:
            others = ", ".join(f"`{{{name}}}`" for name in FIELDS if name != "existing")
            raise UsageError(
                "`{existing}` in the prompt is the caption that the model must learn to give",
                hint=f"the other fields work: {others}",
            )

    def fill(self, text: str, key: str, pictures: Sequence[Attachment]) -> str:
        """Return *text*, a part of the prompt, for the row *key*.

        Args:
            text: A part of the prompt between its pictures.
            key: The name of the row.
            pictures: The pictures of the row; the fields are those of the first.

        Raises:
            PromptError: If the picture has no value for a field.
            ImageError: If the picture cannot be read.
        """
        self.is_used = True
        template, item = parse_template(text), CaptionItem(key, pictures[0])
        values = field_values(template, item, limits=self._limits, captions_folder=None)
        return template.fill(values)

    def to_record(self, examples: Iterable[TrainingExample]) -> str | None:
        """Return the prompt for later captions: this one, or the one question that *examples* have.

        None if the examples have several questions, or none.
        """
        if self.is_used:
            return self.text if self.text.strip() else None
        questions = {_question(example) for example in examples}
        question = questions.pop() if len(questions) == 1 else None
        is_plain = question and "{" not in question and len(read_marks(question)) == 1
        return question if is_plain else None


def _question(example: TrainingExample) -> str | None:
    messages = example.request.messages
    is_one = len(messages) == len(example.pictures) == 1
    return messages[0].text.strip() if is_one else None
