"""Recognition of the kinds of image sources, by their text alone."""

from __future__ import annotations

import os
import re

from idefics_cli.core.errors import ImageError
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import ImageLimits, SourceKind

STDIN = "-"
CLIPBOARD = "clipboard:"
MOST_FILE_BYTES = 4 * 2**30
"""A larger file is refused before it is read, because a sparse file can claim any size."""

_HIDDEN = "…@"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PASSWORD = re.compile(r"^([a-z][a-z0-9+.-]*://)[^/?#]*@", re.IGNORECASE)
_URI = re.compile(r"(https?|file|data|clipboard):|(s3|gs|az|hf|sftp)://", re.IGNORECASE)
_REMOTE = re.compile(r"(s3|gs|az|hf|sftp)://", re.IGNORECASE)
_DATA = re.compile(r"data:([^,]*)(,?)", re.IGNORECASE)


def describe_source(source: str) -> str:
    """Return a short printable name of *source* for messages, without passwords and data."""
    if source == STDIN:
        return "stdin"
    if is_clipboard(source):
        return "clipboard"
    # Match only the beginning: the rest of a `data:` URI may be megabytes.
    if match := _DATA.match(source[:256]):
        label = abbreviated(match[1] or "no type", 40)
        return f"data:{label},… ({len(source)} characters)"
    return abbreviated(without_password(source))


def recorded_source(source: str) -> str:
    """Return *source* for a record: in full, but without passwords and the data of a URI."""
    is_named = source == STDIN or is_clipboard(source) or _DATA.match(source[:256])
    return describe_source(source) if is_named else without_password(source)


def without_password(source: str, *, mark: str = _HIDDEN) -> str:
    """Return *source* with *mark* in place of the user name and the password of a URL."""
    return _PASSWORD.sub(lambda match: match[1] + mark, source)


def lacks_password(source: str) -> bool:
    """Whether *source* is what `without_password` made of a URL with a password."""
    found = _PASSWORD.match(source)
    return found is not None and found[0] == found[1] + _HIDDEN


def has_scheme(source: str) -> bool:
    """Whether *source* begins with a scheme and `://`, for example `ftp://`."""
    return _SCHEME.match(source) is not None


def match_data_uri(source: str) -> re.Match[str] | None:
    """Match the start of a `data:` URI: the media type, and the comma if there is one."""
    return _DATA.match(source)


def is_clipboard(source: str) -> bool:
    """Whether *source* is the picture on the clipboard."""
    return source.lower() == CLIPBOARD


def kind_of_source(source: str) -> SourceKind:
    """Return the kind of *source*; a file if no other kind fits."""
    if source == STDIN:
        return "stdin"
    if is_address(source):
        return "web"
    if source[:5].lower() == "data:":
        return "data"
    if is_remote(source):
        return "remote"
    return "clipboard" if is_clipboard(source) else "file"


def is_remote(source: str) -> bool:
    """Whether *source* is in an object store, or on another machine, that fsspec reads."""
    return _REMOTE.match(source) is not None


def is_address(source: str) -> bool:
    """Whether *source* is an HTTP or HTTPS URL."""
    return source[:8].lower().startswith(("http://", "https://"))


def too_many_bytes(source: str, limits: ImageLimits) -> ImageError:
    """Return the error for a source that is larger than `limits.max_bytes`."""
    return ImageError(
        f"`{describe_source(source)}` is larger than {limits.max_bytes} bytes",
        kind="too_large",
        hint="raise --max-bytes if you trust it",
    )


def is_uri(source: str) -> bool:
    """Whether *source* is stdin, the clipboard or a URI that a model can read, not a path."""
    # Millions of names are asked, and most of them have no colon.
    return source == STDIN or (":" in source and _URI.match(source) is not None)


def as_path(name: str) -> str:
    """Return the path *name* in a form that is not a URI, as `./http:x.png`."""
    return f"./{name}" if is_uri(name) else name


def source_of(path: str) -> str:
    """Return the source by which the image loader reads the file *path*, whatever its name is."""
    # The image loader would expand `~`. In *path*, a `~` is a part of the name. So a path that the
    # loader would read in another way gets `./` in front.
    is_special = is_uri(path) or path.startswith("~")
    return os.path.join(os.curdir, path) if is_special else path
