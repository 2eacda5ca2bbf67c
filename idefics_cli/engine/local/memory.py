"""The memory of devices, out-of-memory errors as `MemoryLimitError`, and summaries of errors."""

from __future__ import annotations

import gc
import logging
import platform
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.core.malloc import return_freed_memory
from idefics_cli.core.types import LoadSpec
from idefics_cli.core.units import counted
from idefics_cli.models.loading.errors import is_out_of_memory

_log = logging.getLogger(__name__)


@contextmanager
def as_memory_limit(batch_size: int) -> Iterator[None]:
    """Turn the out-of-memory errors of torch and Python into a `MemoryLimitError`.

    Raises:
        MemoryLimitError: If the body ran out of memory. The tensors that its functions held in
            local variables are freed.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        _free_tensors(error)
        raise _memory_limit(batch_size) from error


def _free_tensors(error: BaseException) -> None:
    """Clear the frames of *error*, which hold tensors such as the KV cache of the batch.

    Without this, the tensors would live as long as the error, and the caller tries a smaller batch
    before the error is gone.
    """
    traceback.clear_frames(error.__traceback__)


def _memory_limit(batch_size: int) -> MemoryLimitError:
    return MemoryLimitError(
        f"out of memory with {counted(batch_size, 'prompt')} at a time",
        hint="try `--quantization 4bit`, a shorter text, fewer or smaller pictures, "
        "`--no-splitting`" + (", or a smaller `--batch-size`" if batch_size > 1 else ""),
    )


def error_summary(error: BaseException) -> str:
    """Return the class and the first line of *error*, for a log."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def free_unused_memory() -> None:
    """Return all unused memory of this process, also that of tensors in reference cycles.

    Never raises: at the end of a program, an error here would follow complete replies.
    """
    gc.collect()
    return_freed_memory()
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.empty_cache()
    except RuntimeError as error:
        _log.warning("the memory of the GPU was not freed: %s", error_summary(error))


def stay_within_free_memory(spec: LoadSpec) -> None:
    """On Windows, let an allocation beyond the free memory of the CUDA devices of *spec* raise.

    Since version 536, NVIDIA's driver for Windows moves memory into RAM instead, and a batch that
    is too large takes minutes, where an error would halve it at once.
    """
    if platform.system() != "Windows" or not spec.device.startswith("cuda"):
        return
    mapped = (int(key) for key in spec.max_memory or {} if key.isdigit())
    alone = int(spec.device.partition(":")[2] or 0)
    for device in mapped if spec.device_map else (alone,):
        free, total = torch.cuda.mem_get_info(device)
        mine = torch.cuda.memory_reserved(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (free + mine) / total), device)


def peak_bytes(device: str) -> int:
    """Return the peak memory use of *device*, such as `cuda:0`, since the program started."""
    return torch.cuda.max_memory_allocated(device)
