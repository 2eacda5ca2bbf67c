"""Forks that own their memory as a fresh process does: the same, without the time for imports."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

_PROC = Path("/proc")
# Bytes of an entry of `pagemap`, and which of them has the bit of a resident page, its highest.
_ENTRY = 8
_FLAGS = 7 if sys.byteorder == "little" else 0
_RESIDENT = re.compile(rb"[\x80-\xff]+")
# Of madvise(2), since Linux 5.14. It fails where nothing is mapped; touching would end the process.
_POPULATE_READ, _POPULATE_WRITE = 22, 23


def can_fork() -> bool:
    """Return whether `in_fork` works here: on Linux, but in the strictest containers."""
    if sys.platform != "linux":
        return False
    try:
        with (_PROC / "self/pagemap").open("rb") as pagemap:
            is_told = len(pagemap.read(_ENTRY)) == _ENTRY
    except OSError:
        return False
    page = os.sysconf("SC_PAGE_SIZE")
    here = ctypes.addressof(ctypes.c_char()) // page * page
    return is_told and _populate(here, page, _POPULATE_READ) == 0


def in_fork(work: Callable[[], None]) -> int:
    """Do *work* in a fork, whose exit code is returned; this process must have no other threads.

    Returns:
        0; 1 if *work* failed, and its traceback is on stderr; or less if a signal ended it.
    """
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            _own_memory(os.getppid())
            work()
            sys.stdout.flush()
        except BaseException:  # the edge of a process
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _own_memory(parent: int) -> None:
    """Take each page that is resident in *parent*, whose memory is still the same.

    A fork begins without the pages of mapped files, so its peak would be too small, and shares
    the others until it writes to them, so its work would take longer. See proc(5) on `maps` and
    `pagemap`.
    """
    folder, page = _PROC / str(parent), os.sysconf("SC_PAGE_SIZE")
    maps = (folder / "maps").read_text(encoding="utf-8", errors="replace")
    with (folder / "pagemap").open("rb", buffering=0) as pagemap:
        for line in maps.splitlines():
            span, permissions, *_ = line.split(maxsplit=2)
            first, end = (int(address, 16) // page for address in span.split("-"))
            if not permissions.startswith("r"):
                continue
            pagemap.seek(first * _ENTRY)
            flags = pagemap.read((end - first) * _ENTRY)[_FLAGS::_ENTRY]
            is_own = permissions.startswith("rw") and permissions.endswith("p")
            for run in _RESIDENT.finditer(flags):
                start, size = (first + run.start()) * page, len(run[0]) * page
                _populate(start, size, _POPULATE_WRITE if is_own else _POPULATE_READ)


def _populate(address: int, size: int, advice: int) -> int:
    """Bring *size* bytes from a page's *address* on into memory; return 0, or -1 if that failed."""
    # Python is linked with the C library, where this is.
    madvise = ctypes.pythonapi.madvise
    return int(madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice))
