"""The OpenMP library with which torch is linked.

OpenMP keeps a pool of threads for every thread that starts parallel work. The idle threads of one
pool spin for a while, and so slow down the work of another.
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
        OSError: If torch is built in another way than on Linux.
    """
    # Found through torch's own library, so it is the OpenMP library with which torch is linked.
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work in the calling thread alone within this block.

    Without it, a thread that makes tensors of a picture opens a pool beside that of the thread
    that runs the model, and every later token takes 1.2 to 1.35 times as long (SmolVLM-500M, AMD
    Zen 5, 2 threads). `torch.set_num_threads` would hold for all threads that start later.
    """
    try:
        set_threads = openmp_library().omp_set_num_threads
    except (OSError, AttributeError):
        yield  # no such library here: the pool is opened, which costs time only
        return
    # torch sets the number of a thread at its first call there, and would undo ours later.
    before = torch.get_num_threads()
    set_threads(1)
    try:
        yield
    finally:
        set_threads(before)
