"""Functions that write quantities for people: counts, sizes, durations, numbers of parameters."""

from __future__ import annotations

MIB = 2**20
GIB = 2**30


def counted(count: float, noun: str) -> str:
    """Return *count* with its noun, such as `1 picture`, `3 pictures` or `0.5 seconds`."""
    number = f"{count:g}" if isinstance(count, float) else count
    return f"{number} {noun}{'' if count == 1 else 's'}"


def format_size(size_bytes: float) -> str:
    """Return a size in the largest binary unit that fits it, such as `31.3 GiB` or `9 MiB`."""
    if abs(size_bytes) >= GIB // 10:
        return f"{size_bytes / GIB:.1f} GiB"
    if abs(size_bytes) >= MIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / 1024:.0f} KiB"


def format_duration(seconds: float) -> str:
    """Return a duration in two units at most, such as `21 s` or `9 h 43 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_parameters(count: int) -> str:
    """Return the number of parameters of a model in short form, such as `8.4 B` or `507 M`."""
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"
