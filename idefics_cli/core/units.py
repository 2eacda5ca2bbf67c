"""Quantities as text for people: bytes, durations and paths."""

from __future__ import annotations

from pathlib import Path

GIB = 2**30


def gib(size: int) -> str:
    """Return a number of bytes in GiB, for people; below 0.1 GiB in MiB."""
    if abs(size) < GIB // 10:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / GIB:.1f} GiB"


def display_path(path: Path) -> str:
    """Return *path* for people, with `~` for the home folder."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)


def span(seconds: float) -> str:
    """Return a time for people, as `21 s` or `9 h 43 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
