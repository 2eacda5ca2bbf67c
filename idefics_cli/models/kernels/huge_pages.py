"""Memory in huge pages, for weights that every token reads.

The processor keeps the addresses of a few thousand pages at hand. Small pages hold 4 KiB each, so a
token that reads gigabytes looks up nearly every page anew; a huge page of Linux holds 2 MiB.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

# The system needs more time for huge pages: 0.3 s for each GB, more if it has to move other pages
# out of the way. With 4 layers of the shape of idefics2-8b in 12 bits, on 2 threads of an AMD
# Zen 5, a token takes 0.94 of the time; products with one of these layers in int4 0.8 on one thread
# and 0.97 on two. Files that are mapped have huge pages already, if the file system supports it.
# Where layers are small (SmolVLM-500M), captions take as long as before.
LEAST_BYTES = 2**24


def empty_bytes(*shape: int) -> Tensor:
    """Return a uint8 tensor of *shape*, in huge pages if it is large and the system has them."""
    size = math.prod(shape)
    if size >= LEAST_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # no room, of which torch tells better, or no huge pages
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
            return torch.frombuffer(memory, dtype=torch.uint8).view(shape)
    return torch.empty(shape, dtype=torch.uint8)
