"""What the C library does with freed memory. Only glibc has these settings."""

from __future__ import annotations

import ctypes

_MIB = 2**20
_M_MMAP_THRESHOLD = -3
# Parameters of `mallopt`, and their values (malloc.h of glibc).
_SETTINGS = (
    (-8, 1),  # M_ARENA_MAX: one heap for all threads, because those of other threads end at 64 MiB
    # Smaller blocks come from the heap. glibc before 2.35 refuses more than 32 MiB. Without any
    # value it would then stay at 128 KiB, because the next setting switches its growth off.
    (_M_MMAP_THRESHOLD, 32 * _MIB),
    (_M_MMAP_THRESHOLD, 1024 * _MIB),
    (-1, 256 * _MIB),  # M_TRIM_THRESHOLD: so much may be free at the end of the heap
)


def keep_freed_memory() -> None:
    """Let this process use freed memory again, as large as the results of a layer are.

    Each step of a model allocates and frees blocks of the same sizes. By default, glibc returns
    those above 32 MiB to the system at once, and the system clears every page of the next one.
    """
    for parameter, value in _SETTINGS:
        _call("mallopt", parameter, value)


def return_freed_memory() -> None:
    """Give freed memory back to the system. Otherwise glibc keeps it for each thread."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    try:
        getattr(ctypes.CDLL(None), name)(*arguments)
    except (OSError, AttributeError, TypeError):  # another C library
        return
