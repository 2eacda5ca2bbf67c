"""The kinds of image source, told from their text alone."""

from __future__ import annotations

import re

from idefics_cli.core.errors import ImageError
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import ImageLimits

STDIN = "-"
CLIPBOARD = "clipboard:"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PASSWORD = re.compile(r"^([a-z][a-z0-9+.-]*://)[^/?#]*@", re.IGNORECASE)
_URI = re.compile(r"(https?|file|data|clipboard):", re.IGNORECASE)
_DATA = re.compile(r"data:([^,]*)(,?)", re.IGNORECASE)


def describe_source(source: str) -> str:
    """Return a short name of *source* for messages: printable, without passwords or data."""
    if source == STDIN:
        return "stdin"
    if is_clipboard(source):
        return "clipboard"
    # Only the beginning: the rest of a `data:` URI may be megabytes.
    if match := _DATA.match(source[:256]):
        label = abbreviated(match[1] or "no type", 40)
        return f"data:{label},… ({len(source)} characters)"
    return abbreviated(without_password(source))


def without_password(source: str) -> str:
    """Return *source* without the user name and password that an address may hold."""
    return _PASSWORD.sub(r"\1…@", source)


def has_scheme(source: str) -> bool:
    """Whether *source* begins as an address of any scheme does, as `ftp://`."""
    return _SCHEME.match(source) is not None


def match_data_uri(source: str) -> re.Match[str] | None:
    """Match the head of a `data:` URI: its media type, and its comma or nothing."""
    return _DATA.match(source)


def is_clipboard(source: str) -> bool:
    """Whether *source* means the picture on the clipboard."""
    return source.lower() == CLIPBOARD


def is_address(source: str) -> bool:
    """Whether *source* is fetched from the web."""
    return source[:8].lower().startswith(("http://", "https://"))


def too_many_bytes(source: str, limits: ImageLimits) -> ImageError:
    """Return the error for a source with more than `limits.max_bytes`."""
    return ImageError(
        f"`{describe_source(source)}` is larger than {limits.max_bytes} bytes",
        kind="too_large",
        hint="raise --max-bytes if you trust it",
    )


def is_uri(key: str) -> bool:
    """Return True for the key of a picture that is no file."""
    return key == "-" or _URI.match(key) is not None
