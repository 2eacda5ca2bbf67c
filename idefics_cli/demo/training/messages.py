"""Messages on stderr, for the two programs of this folder: `train` and `evaluate`."""

from __future__ import annotations

import sys

from idefics_cli.core.errors import IdeficsError


def print_line(line: str) -> None:
    """Print *line* to stderr at once."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def print_error(error: IdeficsError) -> None:
    """Print *error* and its hint to stderr."""
    print_line(f"error: {error}")
    if error.hint:
        print_line(f"hint: {error.hint}")
