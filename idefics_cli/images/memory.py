"""Limits on the memory that all threads together use for decoding, and on the time of a JPEG."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock
from typing import BinaryIO, cast

from PIL import Image, ImageFile

from idefics_cli.core.malloc import return_freed_memory
from idefics_cli.core.types import DECODING_BYTES
from idefics_cli.images.facts import RareKind

_TRIMMED_BYTES = DECODING_BYTES // 4
_MOST_SCANS = 500  # the limit that Chromium and libjpeg-turbo's fuzzers use
# Bytes per pixel that the decoder of a format needs besides the image, measured with Pillow 13.
_DECODER_BYTES = {"WEBP": 16, "AVIF": 12, "HEIF": 12, "JPEG2000": 16, "ICO": 8, "ICNS": 8}
_BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
_RGB_BYTES = 4  # Pillow's bytes per pixel of an RGB image
_COEFFICIENT_BYTES = 6  # bytes per pixel of a progressive JPEG's coefficients, before reduction


def decoding_bytes(image: Image.Image, pixels: int) -> int:
    """Return an estimate of the bytes that decoding *image* takes, with its RGB copies.

    Args:
        image: The image before it is loaded; a draft already has the reduced size.
        pixels: Number of pixels of the picture without any reduction.
    """
    own = _BYTES_OF_MODE.get(image.mode, 4)
    each = own + 2 * _RGB_BYTES + _DECODER_BYTES.get(image.format or "", 0)
    progressive = _COEFFICIENT_BYTES * pixels if image.info.get("progressive") else 0
    return image.width * image.height * each + progressive


def rgb_bytes(width: int, height: int) -> int:
    """Return the bytes of an RGB image in Pillow: 4 for each pixel, and a pointer for each row."""
    return height * (8 + 4 * width)


class MemoryBudget:
    """A number of bytes that threads share. A thread waits until enough bytes are free.

    Args:
        total_bytes: The size of the budget.
    """

    def __init__(self, total_bytes: int = DECODING_BYTES) -> None:
        self._total = total_bytes
        self._free = total_bytes
        self._turn = Lock()
        self._changed = Condition()

    @contextmanager
    def reserve(self, count: int | None) -> Iterator[None]:
        """Reserve *count* bytes of the budget for the time of the `with` block.

        None, or a number above the budget, reserves all of it.

        Threads are served in the order in which they come. Otherwise small pictures could keep a
        large one waiting for ever.
        """
        count = self._total if count is None else min(count, self._total)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= count)
            self._free -= count
        try:
            yield
        finally:
            if count > _TRIMMED_BYTES:
                return_freed_memory()
            with self._changed:
                self._free += count
                self._changed.notify_all()


# These decoders of Pillow may take seconds for a megapixel. They read the file while they decode,
# so that `_TimedStream` can stop them.
_SLOW_PLUGINS = frozenset({"JPEG", "QOI", "PPM", "BMP"})
_READS_BETWEEN_LOOKS = 1024


class _TimedStream(io.RawIOBase):
    """See `limit_time`."""

    def __init__(self, stream: BinaryIO, seconds: float) -> None:
        self._source = stream
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._reads = 0
        self._scans = 0

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        if size == 1 and self._reads:  # one of millions
            self._reads -= 1
            return data
        self._reads = _READS_BETWEEN_LOOKS
        if time.monotonic() > self._until:
            raise RareKind(f"that takes longer than {self._seconds:g} s to decode")
        self._scans += data.count(b"\xff\xda")
        if self._scans > _MOST_SCANS:
            raise RareKind(f"with more than {_MOST_SCANS} scans")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()


def limit_time(image: ImageFile.ImageFile, plugin: str, seconds: float) -> None:
    """Let the decoding of an unloaded *image* end when it takes too long.

    Each scan of a JPEG can change the whole picture, so a small file can take hours. The number of
    scans has a limit, too. Other decoders work pixel by pixel in Python.

    Args:
        image: The image. Reading raises `RareKind` after the time.
        plugin: Pillow's name of its format.
        seconds: Time from now.
    """
    stream = getattr(image, "fp", None)
    if plugin in _SLOW_PLUGINS and stream is not None:
        image.fp = cast("BinaryIO", _TimedStream(stream, seconds))
