"""Settings of Pillow that hold for the whole process."""

from __future__ import annotations

import ctypes
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from PIL import Image, ImageFile, _imaging

_MODULES = re.compile(r"PIL\.")
_MUTED = tuple(
    ("ignore", None, category, _MODULES, 0) for category in (UserWarning, RuntimeWarning)
)
_LOCK = Lock()
_NO_OUTPUT = logging.NullHandler()


def mute_warnings() -> None:
    """Hide the warnings and log messages of Pillow's plugins about odd files.

    The filters are set once and stay, because `warnings.catch_warnings` would undo the filters of
    other threads.
    """
    # If no handler is set, Python writes errors that a library logs to stderr.
    logging.getLogger("PIL").addHandler(_NO_OUTPUT)
    with _LOCK:
        for muted in _MUTED:
            if muted not in warnings.filters:
                warnings.filterwarnings("ignore", category=muted[2], module=_MODULES.pattern)


def mute_libtiff() -> None:
    """Silence the messages of libtiff, because Pillow raises an error for each of them.

    If the functions of libtiff cannot be found, as in a static build of Pillow, the messages stay.
    """
    try:
        # The extension module of Pillow is opened, because a lookup in it also finds the symbols of
        # the libraries that Pillow uses.
        library = ctypes.CDLL(str(_imaging.__file__))
        for function in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            function.restype = ctypes.c_void_p
            function(None)
    except (OSError, AttributeError):
        return


def has_tiff_codec(compression: int) -> bool:
    """Return whether the libtiff of Pillow can decode a compression (TIFF 6.0, tag 259).

    True if its functions cannot be found.
    """
    try:
        library = ctypes.CDLL(str(_imaging.__file__))
        return bool(library.TIFFIsCODECConfigured(ctypes.c_uint16(compression)))
    except (OSError, AttributeError):
        return True


def set_pixel_limit(max_pixels: int) -> None:
    """Set Pillow's own limit of pixels, so that it refuses pictures above *max_pixels*.

    Plugins decode icons in ICNS files, and parts of other containers, before our limit is checked.
    Pillow refuses a picture above twice its limit, so the limit is half of *max_pixels*. Of all
    loaders in the process, the one with the largest limit decides.
    """
    limit = (max_pixels + 1) // 2
    current = Image.MAX_IMAGE_PIXELS
    if current is not None:
        Image.MAX_IMAGE_PIXELS = limit if current == _DEFAULT_LIMIT else max(current, limit)


_DEFAULT_LIMIT = Image.MAX_IMAGE_PIXELS


@contextmanager
def lenient_decoding() -> Iterator[None]:
    """Let Pillow decode files whose end is missing, in the `with` block.

    The missing part of the picture becomes black. Only one thread at a time can be in the block.
    """
    with _LENIENT:
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


_LENIENT = Lock()
