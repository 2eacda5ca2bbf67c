"""The mark `<image>`: the place of a picture in a text."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.core.types import Attachment, Part

PICTURE_MARK = "<image>"
"""The place of a picture in texts of data sets. The image token of every family has this name."""


def fill_marks(text: str, pictures: Sequence[Attachment]) -> tuple[Part, ...]:
    """Return the parts of *text*, with one of *pictures* in place of each mark, in order.

    Raises:
        ValueError: If the text has more or fewer marks than there are pictures.
    """
    first, *others = text.split(PICTURE_MARK)
    parts: list[Part] = [first]
    for picture, following in zip(pictures, others, strict=True):
        parts += [picture, following]
    return tuple(part for part in parts if part != "")
