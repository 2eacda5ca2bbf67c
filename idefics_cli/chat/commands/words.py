r"""The scanner of words: spaces separate them, except inside quotes and after backslashes.

Terminals paste the name of a dragged file in the quotes of a shell. An apostrophe in a name ends
one quoted piece and begins another: 'Anna'\''s photo.png'. But an apostrophe in a sentence is not a
quote. So a quote opens a piece only where a user of a shell would write one, such as at the
beginning of a word.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

_PIECE = re.compile(
    r"""\$'(?P<ansi>(?:[^'\\]|\\.)*)'|'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)\""""
    r"""|\\(?P<escaped>[^\n])|(?P<bare>[^\s\\'"$]+|[\\'"$])""",
    re.DOTALL,
)
_BARE_PIECE = re.compile(r"\\(?P<escaped>[^\n])|(?P<bare>[^\s\\'\"$]+|[\\'\"$])")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\[^\s\\/]")
_WINDOWS_WORD = re.compile(r"\S+")
# Bash writes a name with control characters as $'…', with the escapes of C.
_ANSI = re.compile(
    r"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{1,4})|U([0-9A-Fa-f]{1,8})|(.))",
    re.DOTALL,
)
_CONTROLS = {
    "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
    "v": "\v",
}  # fmt: skip
_BEFORE_QUOTE = frozenset("/=:([{<")


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a line.

    Attributes:
        value: The word without its quotes, backslashes and `@`.
        start: Position in the line where the word begins.
        end: Position in the line where the word ends.
        is_marked: Whether the word begins with `@`.
        quoted: The values of the quoted pieces of the word.
    """

    value: str
    start: int
    end: int
    is_marked: bool = False
    quoted: tuple[str, ...] = ()


def scan_words(line: str) -> Iterator[Word]:
    """Yield the words of *line* in order."""
    place = 0
    while True:
        while place < len(line) and line[place].isspace():
            place += 1
        if place == len(line):
            return
        word = _scan_word(line, place)
        yield word
        place = word.end


def is_windows_path(text: str) -> bool:
    """Whether *text* begins as a path of Windows does: with a drive, or with two backslashes."""
    return _WINDOWS.match(text) is not None


def escape_word(path: str) -> str:
    """Return *path* so that it is one word in a line."""
    if os.name == "nt":
        return f'"{path}"' if re.search(r"\s", path) else path
    return re.sub(r"([\s\\'\"$])", r"\\\1", path)


def _scan_word(line: str, start: int) -> Word:
    is_marked = line[start] == "@" and line[start + 1 : start + 2].strip() != ""
    place = start + is_marked
    if is_windows_path(line[place : place + 4]):
        match = _WINDOWS_WORD.match(line, place)
        end = match.end() if match else place
        return Word(line[place:end], start, end, is_marked)
    value, quoted = "", []
    opens = True
    while place < len(line) and not line[place].isspace():
        match = (_PIECE if opens else _BARE_PIECE).match(line, place)
        if match is None:
            break
        piece, is_quoted = _piece_value(match)
        if is_quoted:
            quoted.append(piece)
        value += piece
        place = match.end()
        opens = match.lastgroup != "bare" or line[place - 1] in _BEFORE_QUOTE
    return Word(value, start, place, is_marked, tuple(quoted))


def _piece_value(match: re.Match[str]) -> tuple[str, bool]:
    """Return the text of a piece, and whether it was in quotes."""
    kind, text = match.lastgroup, match[match.lastgroup or 0]
    if kind == "ansi":
        return _from_ansi(text), True
    if kind == "double":
        # Windows Terminal quotes paths too. In a path of Windows, a backslash escapes nothing.
        is_path = is_windows_path(text)
        return (text if is_path else re.sub(r'\\([\\"$`])', r"\1", text)), True
    if kind == "escaped" and os.name == "nt" and not text.isspace():
        return f"\\{text}", False
    return text, kind == "single"


def _from_ansi(text: str) -> str:
    found, start = b"", 0
    for match in _ANSI.finditer(text):
        octal, byte, short, long, other = match.groups()
        found += os.fsencode(text[start : match.start()])
        if octal or byte:
            found += bytes([int(octal or byte, 8 if octal else 16) & 0xFF])
        elif short or long:
            code = int(short or long, 16)
            found += chr(code).encode("utf-8", "replace") if code < 0x110000 else b"?"
        else:
            found += os.fsencode(_CONTROLS.get(other, other))
        start = match.end()
    return os.fsdecode(found + os.fsencode(text[start:]))
