r"""Marks in a typed prompt: `<image>` and `[1]` are the places of pictures; without torch.

Each `<image>` is the next picture. `[2]` is picture 2: its first mention is the place of the
picture, and later ones become words, such as "the second image". In a prompt with `<image>`, all
of them become words. `\<image>` and `\[1]` are text, and so is everything in backquotes.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from idefics_cli.core.errors import PromptError
from idefics_cli.core.units import counted
from idefics_cli.models.families.spec import IMAGE_TOKEN

# `a[1]` is code, `"boxes": [1]` and `x = [1]` are data, `[1](address)`, `[1][2]` and `[1]: https:`
# are links, so these are no marks. A word for a picture before the number belongs to the mark: "in
# picture [1]" becomes "in the first picture".
_MARK = re.compile(
    r"(?P<code>`+)|(?P<token>\\?(?-i:<image>))|"
    r"(?P<noun>\b(?:the\s+)?(?:image|picture|photo)\s+)?"
    r"(?<![\w\])\[=])(?<!= )(?<![\"']:)(?<![\"']: )"
    r"(?P<escape>\\)?\[(?P<number>[1-9]\d{0,2})\](?![\[(\w\]]|: ?https?:)",
    re.IGNORECASE,
)
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark of a picture in a text.

    Attributes:
        written: The mark as it was typed.
        number: The number of the picture; None for `<image>`, which is the next one.
        noun: The word for a picture before the number, with its article, or "".
        is_escaped: Whether a backslash makes it text.
    """

    written: str
    number: int | None = None
    noun: str = ""
    is_escaped: bool = False

    @property
    def is_token(self) -> bool:
        """Whether it is `<image>`, which takes the next picture."""
        return self.number is None and not self.is_escaped


Piece: TypeAlias = str | Mark


def read_marks(text: str) -> tuple[Piece, ...]:
    """Return *text* as texts and marks in order; all texts as they were typed."""
    pieces: list[Piece] = []
    end = 0
    for match in _outside_code(text):
        pieces += [text[end : match.start()]] if match.start() > end else []
        number = match["number"]
        is_escaped = match["escape"] is not None or match[0].startswith("\\")
        noun = match["noun"] or ""
        pieces.append(Mark(match[0], int(number) if number else None, noun, is_escaped))
        end = match.end()
    return (*pieces, text[end:]) if text[end:] else tuple(pieces)


def read_tokens(text: str) -> tuple[Piece, ...]:
    """Return *text*, which nobody typed, as texts and marks: only `<image>` is a mark."""
    first, *rest = text.split(IMAGE_TOKEN)
    pieces: list[Piece] = [first]
    for following in rest:
        pieces += [Mark(IMAGE_TOKEN), following]
    return tuple(piece for piece in pieces if piece != "")


def references(pieces: Sequence[str | int | Mark]) -> tuple[int, ...]:
    """Return the numbers of pictures in the marks of *pieces*, each once, in order."""
    marks = (p for p in pieces if isinstance(p, Mark) and not p.is_escaped)
    numbers = (mark.number for mark in marks if mark.number is not None)
    return tuple(dict.fromkeys(numbers))


def count_tokens(pieces: Sequence[Piece]) -> int:
    """Return the number of `<image>` among *pieces*."""
    return sum(isinstance(piece, Mark) and piece.is_token for piece in pieces)


def check_marks(
    pieces: Sequence[Piece], own: Collection[int], known: Collection[int], *, gives: str = "-i"
) -> None:
    """Check that the marks of a prompt fit its pictures.

    Args:
        pieces: The prompt.
        own: The numbers of the pictures that come with the prompt.
        known: The numbers to which the prompt may refer. If there are none, `[1]` is text.
        gives: The option or command by which the user gives a picture.

    Raises:
        PromptError: If the prompt has some `<image>`, but not one for each of *own*; or if it has
            a number that is not *known*.
    """
    tokens = count_tokens(pieces)
    if tokens and tokens != len(own):
        fix = f"write `{IMAGE_TOKEN}` where each picture belongs"
        if tokens > len(own):
            fix = f"give a picture with `{gives}` for each"
        raise PromptError(
            f"the prompt has {tokens} `{IMAGE_TOKEN}`, and {_given(len(own))} given",
            hint=rf"{fix}; `\{IMAGE_TOKEN}` is text",
        )
    unknown = [number for number in references(pieces) if number not in known]
    if known and unknown:
        raise PromptError(
            f"the prompt has `[{unknown[0]}]`, and there is no picture {unknown[0]}",
            hint=rf"`\[{unknown[0]}]` is text",
        )


@dataclass(frozen=True, slots=True)
class PlacedPrompt:
    """The pictures of a prompt in their places.

    Attributes:
        unnamed: Numbers of the pictures that no mark names; they come first.
        pieces: The prompt: texts, numbers of pictures in their places, and marks that refer to
            pictures, in order.
    """

    unnamed: tuple[int, ...]
    pieces: tuple[str | int | Mark, ...]

    @property
    def named(self) -> tuple[int, ...]:
        """The numbers of the pictures in their places, in order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, int))

    @property
    def order(self) -> tuple[int, ...]:
        """The numbers of all pictures, in the order of the prompt."""
        return (*self.unnamed, *self.named)

    def in_words(self, shown: Sequence[int]) -> tuple[str | int, ...]:
        """Return the pieces, with marks that refer to pictures in words.

        Args:
            shown: Numbers of the pictures that are counted, in the order of the prompt. A mark
                with another number stays text.
        """
        parts: list[str | int] = []
        for piece in self.pieces:
            if isinstance(piece, int):
                parts.append(piece)
                continue
            is_start = not any(isinstance(p, int) or p.strip() for p in parts)
            text = piece if isinstance(piece, str) else _words(piece, shown, is_start=is_start)
            if parts and isinstance(last := parts[-1], str):
                parts[-1] = last + text
            else:
                parts.append(text)
        return tuple(part for part in parts if part != "")


def place_pictures(
    pieces: Sequence[Piece], own: Sequence[int], known: Collection[int] | None = None
) -> PlacedPrompt:
    """Put the pictures of a prompt in the places of its marks. Marks that do not fit are text.

    Args:
        pieces: The prompt.
        own: Numbers of the pictures that come with the prompt, in order.
        known: The numbers to which the prompt may refer; None means *own*.
    """
    known = own if known is None else known
    tokens = count_tokens(pieces)
    left = list(own) if tokens in (0, len(own)) else []
    placed: list[str | int | Mark] = []
    for piece in pieces:
        if isinstance(piece, str):
            placed.append(piece)
        elif piece.is_escaped:
            is_text = piece.number is None or known
            placed.append(piece.written.replace("\\", "", 1) if is_text else piece.written)
        elif piece.number is None:
            placed.append(left.pop(0) if left else piece.written)
        elif not tokens and piece.number in left:
            left.remove(piece.number)
            placed += [piece.noun, piece.number]
        else:
            placed.append(piece)
    named = {piece for piece in placed if isinstance(piece, int)}
    return PlacedPrompt(tuple(number for number in own if number not in named), tuple(placed))


def _outside_code(text: str) -> Iterator[re.Match[str]]:
    """Yield the marks of *text* that are not in backquotes, escaped ones among them."""
    found = list(_MARK.finditer(text))
    fences: dict[str, deque[int]] = {}
    for match in found:
        if match["code"]:
            fences.setdefault(match["code"], deque()).append(match.start())
    end = 0
    for match in found:
        if match.start() < end:
            continue
        if not match["code"]:
            yield match
            continue
        places = fences[match["code"]]
        while places and places[0] <= match.start():
            places.popleft()
        # A single backquote may be an apostrophe. So it starts code only if the closing one is on
        # the same line.
        if places and (len(match[0]) > 1 or "\n" not in text[match.end() : places[0]]):
            end = places[0] + len(match[0])


def _words(mark: Mark, shown: Sequence[int], *, is_start: bool) -> str:
    if mark.number not in shown:
        return mark.written
    assert mark.number is not None
    which = "the" if len(shown) == 1 else f"the {_ordinal(shown.index(mark.number))}"
    noun = (mark.noun.split() or ["image"])[-1].lower()
    words = f"{which} {noun}"
    return words[0].upper() + words[1:] if is_start else words


def _ordinal(place: int) -> str:
    if place < len(_ORDINALS):
        return _ORDINALS[place]
    number = place + 1
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ending}"


def _given(pictures: int) -> str:
    return f"{counted(pictures, 'picture')} {'is' if pictures == 1 else 'are'}"
