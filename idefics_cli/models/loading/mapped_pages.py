"""Pages of files that are mapped into memory, given back when they are not needed any more.

The weights of a checkpoint are mapped from its files, and a page counts as memory of this process
once it was read. Many kernels keep weights in a form of their own. The pages of the originals would
then stay in memory as long as any weight of the same file is used.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from functools import cache, cached_property
from pathlib import Path

from torch import Tensor

_MAPS = Path("/proc/self/maps")
# Fields of a line before the path: addresses, permissions, offset, device, inode.
_FIELDS = 5


class MappedPages:
    """The files that are mapped into this process; none on systems other than Linux.

    They are listed when the first tensor of a page or more is given back: the list of a process
    with many libraries takes some milliseconds.

    Args:
        maps: The file in which the system lists them.
    """

    def __init__(self, maps: Path = _MAPS) -> None:
        self._maps = maps

    def give_back(self, tensor: Tensor) -> None:
        """Remove the pages of *tensor* from memory, if they are mapped from a file.

        The file, and the system's cache of it, stay. The caller makes sure that nothing will read
        the memory of *tensor* again: a change that was made there is lost.
        """
        first, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        # Pages that hold something else, too, stay.
        start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (first + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < stop and tensor.is_contiguous() and self._holds(first, first + size):
            # The result does not matter: at worst, the pages stay in memory.
            _library().madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED
            )

    @cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        return sorted(_ranges(self._maps))

    def _holds(self, first: int, stop: int) -> bool:
        place = bisect_right(self._ranges, (first, stop)) - 1
        if not 0 <= place < len(self._ranges):
            return False
        start, end = self._ranges[place]
        return start <= first and stop <= end


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _ranges(maps: Path) -> list[tuple[int, int]]:
    try:
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, permissions, *rest = line.split(maxsplit=_FIELDS)
        is_file = len(rest) == _FIELDS - 1 and rest[-1].startswith("/")
        if is_file and "x" not in permissions:
            start, _, end = addresses.partition("-")
            found.append((int(start, 16), int(end, 16)))
    return found
