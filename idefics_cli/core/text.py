"""Text that is safe to print: one line, without control characters."""

from __future__ import annotations

import re

# Characters that move the cursor, start escape sequences or reorder a line: all of category
# Cc but tab and newline, lone surrogates, and the bidirectional embeddings and overrides.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """Return *text* with its control characters as visible symbols; tab and newline stay.

    A `CR LF` becomes a newline. ESC is shown as U+241B, other bytes below 32 as their
    U+24xx picture, the rest by number, as Python writes it in a string.
    """
    return _CONTROL.sub(_picture, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return *text* on one line: as `printable`, with newlines and tabs as symbols too."""
    return printable(text).replace("\n", "\u240a").replace("\t", "\u2409")


def abbreviated(text: str, width: int = 80) -> str:
    """Return *text* with control characters escaped, and its middle left out when it is long."""
    if len(text) > 4 * width:
        text = text[: 2 * width] + text[-2 * width :]
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(shown) <= width:
        return shown
    # More of the end: that is where the file name is.
    head = width // 3
    return f"{shown[:head]}…{shown[head + 1 - width :]}"


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8, by PEP 383
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
