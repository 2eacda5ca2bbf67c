"""Lines that end at spaces instead of in the middle of a word."""

from __future__ import annotations

import re

# What is left for the last column; with less, its lines begin near the margin.
_LEAST_WIDTH = 24
_GAP = re.compile(r"(?<=\S) {2,}(?=\S)")


def fold(line: str, width: int, *, indent: int | None = None) -> list[str]:
    """Return *line* as lines of at most *width* columns, broken at spaces where possible.

    Args:
        line: Without a newline. Wide characters count as two columns.
        width: Columns of the terminal.
        indent: Spaces before every line but the first; None puts them under the last column of
            a table, which is where two spaces or more end for the last time.
    """
    from rich.cells import cell_len, chop_cells

    if cell_len(line) <= width:
        return [line]
    indent = _last_column(line, width) if indent is None else min(indent, width // 2)
    lines, current = [], ""
    for piece in re.findall(r" *[^ ]+", line):
        if current.strip() and cell_len(current + piece) > width:
            lines.append(current)
            current, piece = " " * indent, piece.lstrip(" ")
        current += piece
        while cell_len(current) > width:
            head, *_ = chop_cells(current, width)
            lines.append(head)
            current = " " * indent + current[len(head) :]
    return [*lines, current]


def _last_column(line: str, width: int) -> int:
    from rich.cells import cell_len

    gaps = [match.end() for match in _GAP.finditer(line)]
    start = cell_len(line[: gaps[-1]]) if gaps else 0
    margin = len(line) - len(line.lstrip(" "))
    return start if start and width - start >= _LEAST_WIDTH else min(margin + 4, width // 2)
