"""Functions that make text from models, files and users safe to print on a terminal.

- `printable`: for text of any length, such as an answer; it keeps tabs and newlines.
- `one_line`: for a message, a heading or a table cell, which must stay on one line.
- `abbreviated`: for a name or an address inside a message; it cuts long text in the middle.

They are not for text in files: each output format has its own escapes, in `caption/sinks`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# `printable` replaces these characters, because they move the cursor, start escape sequences or
# reorder a line: all of category Cc except tab and newline, lone surrogates, and the bidirectional
# embeddings and overrides.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """Return *text* with visible symbols for control characters; keep tabs and newlines.

    `CR LF` becomes a newline. A character below 32 becomes its symbol from U+2400 on (ESC is
    U+241B); other control characters become the escape of a Python string.
    """
    return _CONTROL.sub(_symbol, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return `printable` text with symbols also for newlines and tabs."""
    return printable(text).replace("\n", "\u240a").replace("\t", "\u2409")


def or_list(words: Sequence[str], joint: str = "or") -> str:
    """Return *words* as an enumeration: "a, b or c"."""
    return f" {joint} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def abbreviated(text: str, width: int = 80) -> str:
    """Return *text* with Python escapes for control characters, cut in the middle to *width*."""
    if len(text) > 4 * width:
        text = text[: 2 * width] + text[-2 * width :]
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(shown) <= width:
        return shown
    # Keep more of the end, because the name of a file is there.
    head = width // 3
    return f"{shown[:head]}…{shown[head + 1 - width :]}"


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
