r"""Lines of `path<TAB>caption`.

What would break a line is escaped as in C: `\t`, `\n`, `\r`, `\\`, `\x1b`, `\u202e`, and `\xff`
for a byte of a file name that is no UTF-8. So each picture is one line, and can be had back.
"""

from __future__ import annotations

import re

from idefics_cli.caption.sinks.base import UNSAFE, LineSink
from idefics_cli.core.types import CaptionRecord

_ESCAPED = re.compile(rf"[\\\ud800-\udfff]|{UNSAFE.pattern}")
_SHORT = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}


class TsvSink(LineSink):
    """Writes `path<TAB>caption`; a picture that failed has no line."""

    def line(self, record: CaptionRecord) -> bytes | None:
        """Return the line for *record*; None if it has no caption."""
        if record.caption is None:
            return None
        return f"{_escaped(record.file_name)}\t{_escaped(record.caption)}".encode()


def _escaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: _SHORT.get(match[0]) or _coded(ord(match[0])), text)


def _coded(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8, by PEP 383
        return f"\\x{code - 0xDC00:02x}"
    # Above 0x7f, `\x` means a byte, so the characters there are written as `\u0085`.
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"
