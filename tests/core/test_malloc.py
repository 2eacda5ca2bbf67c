"""Freed memory is used again after `keep_freed_memory`, and returned by `return_freed_memory`."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from idefics_cli.core.malloc import keep_freed_memory

M_MMAP_THRESHOLD = -3

PROGRAM = """
import os, resource, threading
from idefics_cli.core.malloc import keep_freed_memory, return_freed_memory

SIZE = 48 * 2**20  # above 32 MiB, the largest block that glibc keeps by default

def faults():
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    # The second block keeps the first from the end of the heap, where a block may be given back.
    bytearray(SIZE), bytearray(1000)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

def count():
    found.append(min(faults() for _ in range(5)))

def count_in_thread():
    thread = threading.Thread(target=count)
    thread.start()
    thread.join()

found = []
count()
keep_freed_memory()
count_in_thread()
before = resident()
return_freed_memory()
print(*found, before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_a_freed_block_is_used_again_without_page_faults_until_it_is_returned() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    by_default, kept, returned = map(int, done.stdout.split())
    # Pages have 4 to 64 KiB, and the system may join them to large ones of 2 MiB.
    assert by_default >= 24
    assert kept < by_default / 4
    assert returned > 100


class OldLibrary:
    """A `mallopt` as in glibc 2.34, which refuses a threshold above 32 MiB."""

    def __init__(self) -> None:
        self.values: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        """Set *parameter* to *value*; return 1 if that is allowed, else 0."""
        is_allowed = parameter != M_MMAP_THRESHOLD or value <= 32 * 2**20
        if is_allowed:
            self.values[parameter] = value
        return int(is_allowed)


def test_an_old_library_uses_blocks_of_up_to_32_mib_again(monkeypatch: pytest.MonkeyPatch) -> None:
    library = OldLibrary()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)

    keep_freed_memory()

    assert library.values[M_MMAP_THRESHOLD] == 32 * 2**20
