"""Answers of a terminal that arrive late, among the keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit.input import Input

# Device attributes, primary (`?`) and secondary (`>`), and other reports in the same form; the
# answer to a query for kitty graphics; control strings. Sources: XTerm control sequences; the
# graphics protocol of kitty.
_ANSWER = re.compile(r"\x1b\[[?>][\d;$]*[a-zA-Z]|\x1b[_P\]][^\x1b\x07]*(?:\x1b\\|\x07)")
# The beginning of an answer, whose rest may follow. A lone escape is also the key Escape.
_BEGUN = re.compile(r"\x1b(?:\[(?:[?>][\d;$]*)?|[_P\]][^\x1b\x07]*\x1b?)?\Z")


class AnswerFilter:
    """Removes the answers of a terminal from text that arrives in pieces.

    A connection can be slow, so that an answer comes after the program stopped waiting for it.
    Without this, it would be typed into the line.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Add *text*, and return what is typed so far."""
        text = _ANSWER.sub("", self._held + text)
        begun = _BEGUN.search(text)
        self._held = begun[0] if begun else ""
        return text[: len(text) - len(self._held)]

    def flush(self) -> str:
        """Return what was held back and is not the beginning of an answer after all."""
        held, self._held = self._held, ""
        # After this time a person has pressed Escape, but an answer is still on its way.
        if held in ("", "\x1b", "\x1b["):
            return held
        self._held = held
        return ""


def remove_answers(text: str) -> str:
    """Return *text* without the answers of a terminal in it, also without one that is cut off."""
    text = _ANSWER.sub("", text)
    begun = _BEGUN.search(text)
    return text[: begun.start()] if begun else text


def is_cut_off(text: str) -> bool:
    """Whether *text* ends within an answer."""
    return _BEGUN.search(text) is not None


def without_answers(keyboard: Input) -> Input:
    """Return *keyboard*, which no longer types the answers of its terminal."""
    parser = getattr(keyboard, "vt100_parser", None)
    if parser is not None:  # None on Windows, whose console is not asked
        keyboard.vt100_parser = _FilteredParser(parser)  # type: ignore[attr-defined]  # it has one
    return keyboard


class _FilteredParser:
    """A parser of prompt-toolkit behind an `AnswerFilter`."""

    # Any: the parser of the library, of which all other attributes are passed on.
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
