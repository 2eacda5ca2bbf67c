"""Pillow's process-wide settings, as this program needs them."""

from __future__ import annotations

import ctypes
import logging
import re
import warnings
from threading import Lock

from PIL import Image, _imaging

_MODULES = re.compile(r"PIL\.")
_MUTED = tuple(
    ("ignore", None, category, _MODULES, 0) for category in (UserWarning, RuntimeWarning)
)
_LOCK = Lock()
_NO_OUTPUT = logging.NullHandler()


def mute_warnings() -> None:
    """Keep what Pillow's plugins warn of and log in odd files away from the user.

    `warnings.catch_warnings` would undo the filters of other threads; a filter for Pillow's own
    modules, set once, does not.
    """
    # Without any handler, Python writes a library's errors to stderr.
    logging.getLogger("PIL").addHandler(_NO_OUTPUT)
    with _LOCK:
        for muted in _MUTED:
            if muted not in warnings.filters:
                warnings.filterwarnings("ignore", category=muted[2], module=_MODULES.pattern)


def mute_libtiff() -> None:
    """Stop libtiff from writing to the terminal what Pillow raises as an error anyway.

    Where its functions cannot be reached (Pillow as one static library), its lines stay.
    """
    try:
        # A look-up in Pillow's extension finds the symbols of the libraries that it links.
        library = ctypes.CDLL(str(_imaging.__file__))
        for function in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            function.restype = ctypes.c_void_p
            function(None)
    except (OSError, AttributeError):
        return


def raise_pixel_limit(max_pixels: int) -> None:
    """Let Pillow's own limit, which its plugins ask while they decode, not be under ours."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
