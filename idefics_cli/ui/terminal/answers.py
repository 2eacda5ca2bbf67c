"""A filter for the keyboard: it removes answers of the terminal that arrive among the keys.

A program asks a terminal what it can do by writing a query, and the terminal sends its answer as if
the user had typed it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit.input import Input

# `_ANSWER` finds two forms of answers of a terminal. The first are reports such as the primary
# (`?`) and secondary (`>`) device attributes. The second are control strings such as the answer
# about kitty graphics. Sources: XTerm control sequences; the graphics protocol of kitty.
_ANSWER = re.compile(r"\x1b\[[?>][\d;$]*[a-zA-Z]|\x1b[_P\]][^\x1b\x07]*(?:\x1b\\|\x07)")
# `_BEGUN` finds the beginning of an answer whose rest may follow. A lone escape character matches
# too, although the key Escape sends it as well.
_BEGUN = re.compile(r"\x1b(?:\[(?:[?>][\d;$]*)?|[_P\]][^\x1b\x07]*\x1b?)?\Z")


class AnswerFilter:
    """Removes the answers of a terminal from text that arrives in pieces.

    Over a slow connection, an answer arrives after the program has stopped waiting for it. Without
    this filter, the answer would appear in the line that the user types.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Add *text*, and return what the user has typed; a begun answer is held back."""
        text = _ANSWER.sub("", self._held + text)
        begun = _BEGUN.search(text)
        self._held = begun[0] if begun else ""
        return text[: len(text) - len(self._held)]

    def flush(self) -> str:
        """Return held text that the user has typed. Call this when no more text came for a while.

        A longer beginning of an answer stays held back.
        """
        held, self._held = self._held, ""
        # No more text has come for a while. So an escape, alone or with "[", is a key. Anything
        # longer can only be an answer, whose rest is still on its way.
        if held in ("", "\x1b", "\x1b["):
            return held
        self._held = held
        return ""


def remove_answers(text: str) -> str:
    """Return *text* without the answers of a terminal, and without an unfinished one at its end."""
    text = _ANSWER.sub("", text)
    begun = _BEGUN.search(text)
    return text[: begun.start()] if begun else text


def is_cut_off(text: str) -> bool:
    """Whether *text* ends with an unfinished answer."""
    return _BEGUN.search(text) is not None


def without_answers(keyboard: Input) -> Input:
    """Change *keyboard* so that it drops the answers of its terminal, and return it."""
    parser = getattr(keyboard, "vt100_parser", None)
    if parser is not None:  # None on Windows, whose console is not asked
        keyboard.vt100_parser = _FilteredParser(parser)  # type: ignore[attr-defined]  # it has one
    return keyboard


class _FilteredParser:
    """A parser of prompt-toolkit behind an `AnswerFilter`."""

    # Any: a parser of prompt-toolkit, whose other attributes `__getattr__` passes on.
    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._filter = AnswerFilter()

    def feed(self, data: str) -> None:
        self._parser.feed(self._filter.feed(data))

    def flush(self) -> None:
        self._parser.feed(self._filter.flush())
        self._parser.flush()

    def feed_and_flush(self, data: str) -> None:
        self.feed(data)
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)
