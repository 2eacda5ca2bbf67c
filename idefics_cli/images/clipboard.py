"""The reader of the clipboard: it returns a picture's bytes, or the path of a copied file."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from threading import Timer
from typing import IO
from urllib.parse import unquote, urlsplit

from PIL import _imaging

from idefics_cli.core.errors import ImageError
from idefics_cli.core.files import read_limited
from idefics_cli.core.sources import CLIPBOARD, too_many_bytes
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import ImageLimits

_URI_LIST = "text/uri-list"
_ERROR_BYTES = 4096
# Messages of wl-paste, xclip and pngpaste about a clipboard without a picture.
_NO_PICTURE = (
    "nothing is copied", "no selection", "no suitable type", "not available", "cannot convert",
    "there is no owner", "no image data",
)  # fmt: skip


def read_clipboard(limits: ImageLimits) -> bytes | str:
    """Return the bytes of the picture on the clipboard, or the path of the first copied file.

    Tools of the desktop return the bytes, within limits of size and time. Nothing is decoded here.

    Raises:
        ImageError: If there is no picture, or the clipboard cannot be read.
    """
    if sys.platform == "win32":
        content = _read_windows()
    elif sys.platform == "darwin":
        content = _read_macos(limits)
    else:
        content = _read_linux(limits)
    if not content:
        raise ImageError(
            "the clipboard holds no picture", kind="missing", hint="copy a picture first"
        )
    return content


def _read_linux(limits: ImageLimits) -> bytes | str:
    is_x11 = bool(os.getenv("DISPLAY")) and not os.getenv("WAYLAND_DISPLAY")
    if shutil.which("wl-paste") and not is_x11:
        list_types, paste = ["wl-paste", "--list-types"], ["wl-paste", "--no-newline", "--type"]
    elif shutil.which("xclip") and not os.getenv("WAYLAND_DISPLAY"):
        paste = ["xclip", "-selection", "clipboard", "-o", "-t"]
        list_types = [*paste, "TARGETS"]
    else:
        raise _unreadable("wl-paste or xclip is needed")
    types = _run(list_types, limits).decode("utf-8", "replace").split()
    pictures = [kind for kind in types if kind.startswith("image/")]
    if not pictures and _URI_LIST in types:
        return _first_path(_run([*paste, _URI_LIST], limits))
    # Programs convert a picture to several formats and offer all of them. PNG is preferred, because
    # it loses nothing.
    kind = "image/png" if "image/png" in pictures or not pictures else pictures[0]
    return _run([*paste, kind], limits)


def _read_macos(limits: ImageLimits) -> bytes | str:
    if shutil.which("pngpaste"):
        return _run(["pngpaste", "-"], limits)
    data = _run(["osascript", "-e", "get the clipboard as «class PNGf»"], limits)
    # The output is `«data PNGf89504E…»`, with the bytes in hexadecimal.
    digits = data.strip()[11:-2].decode("ascii", "replace")
    try:
        return bytes.fromhex(digits.rstrip("\u00bb\ufffd"))
    except ValueError as error:
        raise _unreadable("osascript gave no PNG") from error


def _read_windows() -> bytes | str:
    kind, data = _imaging.grabclipboard_win32()
    if kind == "file":  # DROPFILES: offset, point, flag of the client area, flag of UTF-16
        (start,) = struct.unpack_from("<I", data)
        encoding = "utf-16le" if data[16] else "mbcs"
        return str(data[start:].decode(encoding).split("\0")[0])
    if kind != "DIB":
        return bytes(data) if kind == "PNG" else b""
    header, bits, compression = struct.unpack_from("<I10xHI", data)
    (used,) = struct.unpack_from("<I", data, 32)
    colours = used or (1 << bits if bits <= 8 else 0)
    masks = 12 if header == 40 and compression == 3 else 0
    start = 14 + header + masks + 4 * colours
    return b"BM" + struct.pack("<IHHI", 14 + len(data), 0, 0, start) + bytes(data)


def _first_path(uri_list: bytes) -> str:
    """Return the path of the first file of a `text/uri-list` (RFC 2483)."""
    for line in uri_list.decode("utf-8", "surrogateescape").splitlines():
        if line.startswith("file:"):
            return unquote(urlsplit(line.strip()).path, errors="surrogateescape")
    return ""


def _run(command: Sequence[str], limits: ImageLimits) -> bytes:
    """Return what *command* prints, or nothing if it says that there is no picture.

    Raises:
        ImageError: If the command fails, prints more than the limit, or does not end in time.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
        except OSError as error:
            raise _unreadable(str(error)) from error
        timer = Timer(limits.timeout_seconds, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            data = read_limited(process.stdout, limits.max_bytes + 1)
            if len(data) > limits.max_bytes:
                raise too_many_bytes(CLIPBOARD, limits)
            code = process.wait()
        finally:
            is_late = not timer.is_alive()
            timer.cancel()
            process.kill()
            process.communicate()
        if code == 0:
            return data
        if is_late:
            raise _unreadable(f"{command[0]} gave no answer in {limits.timeout_seconds:g} s")
        return _explain(command[0], errors)


def _explain(tool: str, errors: IO[bytes]) -> bytes:
    errors.seek(0)
    text = errors.read(_ERROR_BYTES).decode("utf-8", "replace").strip()
    if any(words in text.lower() for words in _NO_PICTURE):
        return b""
    raise _unreadable(f"{tool} error: {text}" if text else f"{tool} error")


def _unreadable(reason: str) -> ImageError:
    return ImageError(
        f"cannot read `clipboard`: {abbreviated(reason)}",
        kind="unsupported",
        hint="on Linux install wl-clipboard or xclip; without a desktop give a file",
    )
