"""Colours for Markdown that arrives in pieces; every character of the source stays visible.

A renderer such as rich's drops HTML and link targets, renumbers lists, and redraws the screen. This
one only adds colours to the source, so nothing flickers and nothing is lost.

It does not break long lines. The terminal wraps them, so that the user copies such a line as one
line, and the terminal wraps it again after a change of its width.
"""

from __future__ import annotations

import re

_RESET = "\x1b[0m"
# Codes of ANSI escape sequences. Yellow, cyan and green are missing because they are hard to read
# on a white background, and blue because it is hard to read on a black one.
_STRONG, _EMPHASIS, _CODE, _HEADING, _QUOTE, _MARK = "1", "3", "35", "1;4", "2", "2"
# The stream shows its text unit by unit. A unit is a newline, other white space, one wide
# character (CJK text has no spaces between its words), or a word. A longer word than this number
# of characters is several units.
_WORD_CHARACTERS = 60
_WIDE = "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60"
_UNIT = re.compile(
    rf"\n|[^\S\n]+|[{_WIDE}]|[^\s{_WIDE}]{{1,{_WORD_CHARACTERS}}}",
)
_FENCE = re.compile(r"`{3,}|~{3,}")
_HEADING_START = re.compile(r"#{1,6}")
_LIST_START = re.compile(r"[-*+]|\d{1,9}[.)]")
# `_INLINE` finds marks around code, emphasis and strong text. An opening mark has text right after
# it, and a closing mark has text right before it. This simplifies the rules of CommonMark 0.31,
# section 6.2.
_INLINE = re.compile(r"`+|\*{1,3}|_{1,3}")


class MarkdownStream:
    """Turns Markdown that arrives in pieces into text for a terminal.

    All ways of cutting the same text into pieces give the same output.

    Args:
        styled: Whether to add colours.
    """

    def __init__(self, *, styled: bool) -> None:
        self._is_styled = styled
        self._pending = ""
        self._is_line_start = True
        self._fence = ""
        self._line_style = ""
        self._inline: dict[str, str] = {}

    def feed(self, text: str) -> str:
        """Add *text*, and return the text to show now.

        An unfinished last word is held back until its end arrives.
        """
        self._pending += text
        units = _UNIT.findall(self._pending)
        if not units:
            return ""
        # The last unit may continue, unless it is a newline or a wide character.
        is_whole = units[-1] == "\n" or re.fullmatch(f"[{_WIDE}]", units[-1])
        ready = units if is_whole else units[:-1]
        self._pending = self._pending[sum(map(len, ready)) :]
        return "".join(map(self._show, ready))

    def close(self) -> str:
        """Return the rest of the text."""
        rest = "".join(map(self._show, _UNIT.findall(self._pending)))
        self._pending = ""
        return rest

    def _show(self, unit: str) -> str:
        if unit == "\n":
            self._inline.clear()  # a mark without a closing mark colours the rest of its line only
            self._is_line_start, self._line_style = True, ""
            return unit
        return unit if unit.isspace() else self._word(unit)

    def _word(self, word: str) -> str:
        if self._is_line_start:
            self._is_line_start = False
            if (fence := self._at_fence(word)) is not None:
                return fence
            if not self._fence and (mark := self._block_mark(word)) is not None:
                return mark
        if self._fence:
            return self._paint(word, (_CODE,))
        return self._inline_word(word)

    def _at_fence(self, word: str) -> str | None:
        match = _FENCE.match(word)
        if match is None or (self._fence and not word.startswith(self._fence)):
            return None
        self._fence = "" if self._fence else match[0]
        self._line_style = _MARK
        return self._paint(word, (_MARK,))

    def _block_mark(self, word: str) -> str | None:
        if _HEADING_START.fullmatch(word):
            self._line_style = _HEADING
        elif word.startswith(">"):
            self._line_style = _QUOTE
        elif not _LIST_START.fullmatch(word):
            return None
        return self._paint(word, (_HEADING,))

    def _inline_word(self, word: str) -> str:
        shown, start = "", 0
        for match in _INLINE.finditer(word):
            shown += self._paint(word[start : match.start()], self._codes())
            shown += self._inline_mark(match[0], word[match.end() :], word[: match.start()])
            start = match.end()
        return shown + self._paint(word[start:], self._codes())

    def _inline_mark(self, mark: str, after: str, before: str) -> str:
        is_code = mark.startswith("`")
        if "`" in {key[0] for key in self._inline} and mark not in self._inline:
            return self._paint(mark, self._codes())  # inside code, other marks are plain text
        if mark in self._inline and (is_code or before):
            del self._inline[mark]
            return self._paint(mark, (_MARK,))
        if after and (is_code or not before[-1:].isalnum()):
            self._inline[mark] = _CODE if is_code else (_EMPHASIS, _STRONG)[len(mark) > 1]
            return self._paint(mark, (_MARK,))
        return self._paint(mark, self._codes())

    def _codes(self) -> tuple[str, ...]:
        return tuple(code for code in (self._line_style, *self._inline.values()) if code)

    def _paint(self, text: str, codes: tuple[str, ...]) -> str:
        if not self._is_styled or not text or not codes:
            return text
        return f"\x1b[{';'.join(codes)}m{text}{_RESET}"
