"""Running out of memory, on any device, as an error of ours."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from idefics_cli.core.errors import MemoryLimitError


@contextmanager
def as_memory_limit(batch_size: int) -> Iterator[None]:
    """Turn what torch and Python raise when memory runs out into our error.

    Raises:
        MemoryLimitError: With the memory of the work that failed given back.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        _free_tensors(error)
        raise _memory_limit(batch_size) from error
    except RuntimeError as error:
        # The CPU allocator and MPS have no class of their own for it (torch 2.13).
        if "allocate memory" in str(error) or "out of memory" in str(error).lower():
            _free_tensors(error)
            raise _memory_limit(batch_size) from error
        raise


def _free_tensors(error: BaseException) -> None:
    """Let go of what the frames below *error* hold, as the KV cache of the batch.

    Whoever tries a smaller batch next does so while the error may still be referred to.
    """
    traceback.clear_frames(error.__traceback__)


def _memory_limit(batch_size: int) -> MemoryLimitError:
    return MemoryLimitError(
        f"out of memory with {batch_size} prompt{'s' if batch_size > 1 else ''} at a time",
        hint="try fewer or smaller images, `--no-splitting`, `--quantization 4bit`"
        + (", or a smaller `--batch-size`" if batch_size > 1 else ""),
    )


def peak_bytes(device: str) -> int:
    """Return the most memory that was taken on *device*, as `cuda:0`, since the program began."""
    return torch.cuda.max_memory_allocated(device)
