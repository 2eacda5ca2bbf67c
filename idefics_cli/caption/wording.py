"""The rules by which a reply becomes a caption: texts are added, and openings are removed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from idefics_cli.core.types import Finish

OnTruncate = Literal["keep", "trim", "extend"]

_PICTURE = r"(?:image|picture|photo|photograph|pic)"
_THIS = rf"(?:the|this)\s+(?:(?:given|provided)\s+)?{_PICTURE}"
_SEEN = (
    r"(?:(?:we|you|i|one)\s+(?:can\s+)?(?:clearly\s+)?(?:see|observe)"
    r"|there(?:\s+is|\s+are|['\u2019]s))"
)
# Both patterns match openings that carry no information (English only). `_LABEL` matches a label
# for the text: "Sure! Here is a caption for the image:", "**Caption:**"
_LABEL = re.compile(
    rf"(?:(?:sure|certainly|of\s+course)[,!.]\s*)?here(?:\s+is|['\u2019]s)\s+(?:a|an|the)\s+"
    rf"(?:\w+\s+){{0,2}}(?:caption|description)(?:\s+(?:of|for)\s+(?:{_THIS}|it))?:\s*"
    r"|\**(?:caption|description|answer|assistant)\**:\**\s+",
    re.IGNORECASE,
)
# After the label, at most one of these openings is removed. In "The image shows a photo of a cat",
# "a photo of" stays, because the picture is of a photo.
_OPENING = re.compile(
    "|".join(
        (
            # "The image shows", "This picture appears to depict", "The photo is of"
            rf"{_THIS}\s+(?:(?:mainly|primarily|clearly)\s+)?(?:(?:appears|seems)\s+to\s+)?"
            r"(?:shows?|depicts?|displays?|features?|captures?|portrays?|presents?|contains?"
            r"|is\s+of|be\s+of)\s+(?:that\s+|us\s+)?",
            # "This is a picture of", "The image is a photo of", "An image of"
            rf"(?:(?:this|it|{_THIS})(?:\s+is|['\u2019]s)\s+)?an?\s+{_PICTURE}"
            r"\s+(?:of|showing)\s+",
            # "In this image, we can see", "In the picture there is", "In the photo, a"
            rf"in\s+{_THIS}(?:,\s*(?:{_SEEN}\s+)?|\s+{_SEEN}\s+|\s+(?=(?:an?|the|two|some)\s))",
            # "We can see", "I see"
            r"(?:we|you|i)\s+(?:can\s+)?see\s+(?=(?:an?|the|two|some|several|many)\s)",
        )
    ),
    re.IGNORECASE,
)
# `_SENTENCE_END` finds the end of a sentence. A full stop after "Mr", after an initial, or after
# the number of a list item does not end a sentence.
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\bMrs)(?<!\be\.g)(?<!\bi\.e)"
    r"(?<!^\d)(?<!^\d\d)(?<![.!?\u2026])[.!?\u2026]+[\"'\u201d\u2019)\]*]*(?=\s|$)"
    r"|[\u3002\uff01\uff1f][\u300d\u300f\u201d\uff09]*|(?<=\S)(?=\s*\n)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Wording:
    """How a reply becomes a caption.

    Attributes:
        prefix: Text before the caption, added as it is.
        suffix: Text after the caption, added as it is.
        trigger: Words before the prefix, with a comma, unless the caption already contains them.
            Programs that train on captions often shuffle or drop words, but keep the first ones.
        strip_preamble: Whether to remove "The image shows" and similar openings.
        on_truncate: What to do with a reply that was cut off: "keep" it, "trim" it to whole
            sentences, or "extend" it. The run extends a reply by asking again.
    """

    prefix: str = ""
    suffix: str = ""
    trigger: str = ""
    strip_preamble: bool = False
    on_truncate: OnTruncate = "keep"

    def finish(self, text: str, finish: Finish) -> str:
        """Return the caption for the reply *text*; an empty reply stays empty."""
        text = text.strip()
        if self.on_truncate == "trim" and finish == "length":
            text = trimmed(text)
        if self.strip_preamble:
            text = without_preamble(text)
        if not text:
            return text
        text = f"{self.prefix}{text}{self.suffix}"
        return text if _has_words(text, self.trigger) else f"{self.trigger}, {text}"


def without_preamble(text: str) -> str:
    """Return *text* without an opening such as "The image shows"; it then begins with a capital.

    A text without such an opening, or with nothing after it, is returned unchanged.
    """
    rest = begin = text.lstrip()
    for pattern in (_LABEL, _OPENING):
        if match := pattern.match(rest):
            rest = rest[match.end() :]
    if rest == begin or not any(character.isalnum() for character in rest):
        return text
    # A first word in lower case gets a capital letter. "iPhone" stays, because it has a capital
    # already.
    first = re.match(r"[^\W\d_]+", rest)
    return rest[0].upper() + rest[1:] if first and first[0].islower() else rest


def trimmed(text: str) -> str:
    """Return *text* up to its last whole sentence or line; all of *text* if it has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def _has_words(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None if words else True
