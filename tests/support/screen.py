"""The lines that a terminal shows."""

from __future__ import annotations

import re


def screen(written: str) -> list[str]:
    """Return the lines that a terminal shows after *written*, without colours."""
    rows = [""]
    row = column = 0
    for token in re.findall(r"\x1b\[[?0-9;]*[a-zA-Z]|.|\n|\r", written):
        if token == "\n":
            row += 1
            if row == len(rows):
                rows.append("")
        elif token == "\r":
            column = 0
        elif token == "\x1b[2K":
            rows[row] = ""
        elif token.endswith("A") and token.startswith("\x1b["):
            row -= int(token[2:-1])
        elif not token.startswith("\x1b"):
            line = rows[row].ljust(column)
            rows[row] = line[:column] + token + line[column + 1 :]
            column += 1
    return [line.rstrip() for line in rows]
