"""Escapes of unsafe characters, in the text and in the names of files of captions."""

from __future__ import annotations

import re

# The jsonl and tsv sinks escape these characters, because they end a line or a field, move the
# cursor, start an escape sequence or reorder a line: category Cc, the line and paragraph
# separators, and the bidirectional controls.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# Surrogates cannot be encoded in UTF-8. Python decodes each byte of a file name that is not UTF-8
# to a surrogate (PEP 383).
NOT_UTF8 = re.compile("[\ud800-\udfff]")
# All of `UNSAFE` and `NOT_UTF8` except line feed and tab, which may occur in a text.
UNSAFE_IN_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# `_ESCAPED_NAME` matches a name that looks escaped: every backslash is doubled, or is part of an
# escape that `escape` makes.
_ESCAPED_NAME = re.compile(r"(?:[^\\]|\\(?:\\|x[0-9a-f]{2}|u[0-9a-f]{4}))*")
_IN_NAME = re.compile(r"\\(\\|x..|u....)")


def escaped(text: str) -> str:
    r"""Return *text* with its control characters and non-UTF-8 bytes as `\x1b`, `\u202e`, `\xff`.

    Line feeds and tabs stay, so that proper text is never changed.
    """
    return UNSAFE_IN_TEXT.sub(lambda match: escape(ord(match[0])), text)


def escaped_name(name: str, unsafe: re.Pattern[str] = UNSAFE_IN_TEXT) -> str:
    r"""Return the file name *name* as it stands in rows; `plain_name` is the inverse.

    If a name has characters that match *unsafe*, these are escaped as `escape` does, and each
    backslash is doubled. Almost every other name is unchanged, even with backslashes, so that other
    programs find the file. Its backslashes are doubled only if it looks like an escaped name.
    """
    is_safe = unsafe.search(name) is None
    if is_safe and ("\\" not in name or not _ESCAPED_NAME.fullmatch(name)):
        return name
    doubled = name.replace("\\", r"\\")
    return unsafe.sub(lambda match: escape(ord(match[0])), doubled)


def plain_name(text: str) -> str:
    """Return the file name that `escaped_name` wrote as *text*."""
    if "\\" not in text or not _ESCAPED_NAME.fullmatch(text):
        return text
    return _IN_NAME.sub(lambda match: _meaning(match[1]), text)


def _meaning(code: str) -> str:
    if code == "\\":
        return code
    number = int(code[1:], 16)
    return chr(0xDC00 + number if code[0] == "x" and number >= 0x80 else number)


def escape(code: int) -> str:
    r"""Return the escape of the character *code* as Python writes it, such as `\x1b`.

    A byte that is not UTF-8 is a lone surrogate in a file name (PEP 383). Its escape is `\xff`.
    """
    if 0xDC80 <= code <= 0xDCFF:  # by PEP 383
        return f"\\x{code - 0xDC00:02x}"
    # Here `\x80` to `\xff` always stand for bytes. So a character from U+0080 on is written as `\u`
    # with four digits, such as `\u0085`.
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"
