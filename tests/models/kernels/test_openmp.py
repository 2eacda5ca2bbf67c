"""Threads of torch's OpenMP library."""

from __future__ import annotations

import subprocess
import sys

import pytest

_COUNT = """
import contextlib, os, sys, torch
from idefics_cli.models.kernels.openmp import one_thread

torch.set_num_threads(2)
large = torch.frombuffer(bytearray(2**24), dtype=torch.float32)
for block in (one_thread(), contextlib.nullcontext()):
    before = len(os.listdir("/proc/self/task"))
    with block:
        large + 1
    print(len(os.listdir("/proc/self/task")) - before, torch.get_num_threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_thread_that_works_alone_opens_no_pool_and_has_its_threads_back() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _COUNT],
        capture_output=True,
        text=True,
        check=True,
        # The 1 of the tests would hold here, too.
        env={"OMP_NUM_THREADS": "2", "PYTHONPATH": ":".join(sys.path)},
    )
    # Without the block, torch opens its pool of two threads.
    assert done.stdout.splitlines() == ["0 2", "1 2"], done.stderr
