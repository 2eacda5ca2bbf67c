r"""The format TSV: lines of `path<TAB>caption`, or of the path and each answer.

Characters that would break a line are escaped as in C: `\t`, `\n`, `\r`, `\\`, `\x1b`, `\u202e`,
and `\xff` for a byte of a file name that is not UTF-8. So each picture has one line, and its name
and caption can be restored from the line.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from pathlib import Path

from idefics_cli.caption.sinks.lines import LineSink
from idefics_cli.caption.sinks.rows import field_cells, plain_cell
from idefics_cli.core.escapes import UNSAFE, escape
from idefics_cli.core.files import limited_lines
from idefics_cli.core.types import CaptionRecord

_ESCAPED = re.compile(rf"[\\\ud800-\udfff]|{UNSAFE.pattern}")
_SHORT = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}


class TsvSink(LineSink):
    """Writes `path<TAB>caption`; a picture that failed has no line."""

    def line(self, record: CaptionRecord, file_name: str) -> bytes | None:
        """Return the line of *record*; None if it has no caption."""
        if record.caption is None:
            return None
        answers = dict(record.answers)
        columns = self._target.columns
        if self._target.fields:
            cells = field_cells(record, self._target.fields)
            answers = {name: plain_cell(value) for name, value in cells.items()}
        texts = [answers.get(name, "") for name in columns] if columns else [record.caption]
        return ("\t".join(map(_escaped, [file_name, *texts])) + "\n").encode()

    def stored(self, path: Path) -> AbstractSet[str]:
        """Return the names with a caption; see `LineSink.stored`."""
        names = set()
        with path.open("rb") as file:
            for number, line in enumerate(limited_lines(file), 1):
                name, tab, _ = line.decode().partition("\t")
                if not tab:
                    raise ValueError(f"line {number} has no tab")
                names.add(unescaped(name))
        return names


def unescaped(text: str) -> str:
    """Return the text of an escaped field."""
    return re.sub(r"\\(x..|u....|.)", lambda match: _meaning(match[1]), text)


def _meaning(code: str) -> str:
    if code[0] == "u":
        return chr(int(code[1:], 16))
    if code[0] == "x":
        byte = int(code[1:], 16)
        return chr(byte) if byte < 0x80 else chr(0xDC00 + byte)
    return {"n": "\n", "t": "\t", "r": "\r"}.get(code, code)


def _escaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: _SHORT.get(match[0]) or escape(ord(match[0])), text)
