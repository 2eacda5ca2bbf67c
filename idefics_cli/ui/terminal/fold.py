"""Folding of long lines at spaces."""

from __future__ import annotations

import re

# The least width of the last column of a table. If less is left, folded lines are not aligned with
# that column and begin near the margin.
_LEAST_WIDTH = 24
_GAP = re.compile(r"(?<=\S) {2,}(?=\S)")


def fold(line: str, width: int, *, indent: int | None = None) -> list[str]:
    """Split *line* into lines of at most *width* columns, at spaces where possible.

    Args:
        line: A line without a newline. Wide characters count as two columns.
        width: Width of the terminal in columns.
        indent: Number of spaces before every line but the first. With None, *line* is taken as a
            row of a table, and these lines are aligned with its last column. That column begins
            after the last gap of two or more spaces.
    """
    from rich.cells import cell_len, chop_cells

    if cell_len(line) <= width:
        return [line]
    indent = _last_column(line, width) if indent is None else min(indent, width // 2)
    lines, current = [], ""
    for piece in re.split(r"(?<=[^ ])(?= )", line.rstrip(" ")):
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
