"""Access to the OpenMP library with which torch is linked.

OpenMP keeps one pool of threads for each thread that starts parallel work. After its work, a pool
spins for a while, which takes processor time from the other pools.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch


@cache
def openmp_library() -> ctypes.CDLL:
    """Return a handle that finds the functions of torch's OpenMP library.

    Raises:
        OSError: If torch has no `libtorch_cpu.so`, as on Windows and macOS.
    """
    # A handle of torch's own library also finds functions of the libraries with which torch is
    # linked, so it finds no other OpenMP library that may be installed.
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use only the calling thread for its work in the `with` block.

    Without this block, a thread that preprocesses pictures opens a pool of its own. That pool
    slows down the thread that runs the model: every later token takes 1.2 to 1.35 times as long
    (SmolVLM-500M, AMD Zen 5, 2 threads). `torch.set_num_threads` is no substitute, because it
    also changes all threads that start later.
    """
    try:
        set_threads = openmp_library().omp_set_num_threads
    except (OSError, AttributeError):
        yield  # no such library here: a pool is opened, which only costs time
        return
    # At its first call in a thread, torch sets OpenMP's number of threads for that thread. This
    # call comes before ours, so that torch does not overwrite our number later.
    before = torch.get_num_threads()
    set_threads(1)
    try:
        yield
    finally:
        set_threads(before)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch, and so the kernels, use *count* threads in the `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
