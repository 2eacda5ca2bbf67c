"""The memory bandwidth of the hardware at this moment."""

from __future__ import annotations

from collections.abc import Callable

from idefics_cli.bench.measure import Clock

# Both sizes are far larger than the caches of a processor, so that memory itself is measured.
_CPU_BYTES = 256 * 2**20
_GPU_BYTES = 2**30


def reference(device: str, clock: Clock) -> Callable[[], float]:
    """Return a function that measures the bandwidth of *device*, in GB/s.

    On a CPU it sums 256 MiB with torch, in as many threads as the models use. On a GPU it copies
    1 GiB, and counts the bytes read and the bytes written.
    """
    import torch

    if device.startswith("cuda"):
        source = torch.empty(_GPU_BYTES, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)

        def copy() -> float:
            torch.cuda.synchronize()
            started = clock()
            target.copy_(source)
            torch.cuda.synchronize()
            return 2 * _GPU_BYTES / (clock() - started) / 1e9

        return copy
    numbers = torch.ones(_CPU_BYTES // 4)

    def read() -> float:
        started = clock()
        numbers.sum()
        return _CPU_BYTES / (clock() - started) / 1e9

    return read
