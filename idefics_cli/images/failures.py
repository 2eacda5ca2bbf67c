"""The conversion of errors of Pillow to `ImageError`, with words for the user."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source, is_uri
from idefics_cli.core.text import abbreviated
from idefics_cli.images.facts import CameraRaw, RareKind
from idefics_cli.images.formats import CAMERA_RAW, FileFormat

_LISTS = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt")
_UNSUPPORTED = re.compile(
    r"unsupported|not implemented|not available|not installed|cannot find loader"
    r"|unimplemented|conversion .*not supported"
    r"|unknown (?:pixel|raw mode|data organization|pcx mode|TGA map)|unrecognized raw mode",
    re.IGNORECASE,
)
_CONVERT = "convert it to PNG or JPEG first"
_TOO_LARGE = re.compile(r"too large|too much memory|exceeds limit", re.IGNORECASE)


@contextmanager
def as_image_error(content: FileFormat, source: str) -> Iterator[None]:
    """Convert any error of Pillow to an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except RareKind as error:
        raise _rare(content, source, str(error), error.hint) from error
    except CameraRaw as error:
        raise unusable(CAMERA_RAW, source) from error
    except MemoryError as error:
        raise _too_large(content, source, "it needs too much memory") from error
    except Image.DecompressionBombError as error:
        raise _too_large(content, source, "it has too many pixels") from error
    except KeyError as error:  # the file has a code that a table of Pillow lacks
        raise _rare(content, source, f"unknown code {error}", _CONVERT) from error
    except Exception as error:
        # With corrupt files, plugins of Pillow raise nearly every built-in error: OSError,
        # SyntaxError, struct.error, KeyError, OverflowError, ZeroDivisionError, zlib.error ...
        raise _damaged(content, source, str(error)) from error


def _damaged(content: FileFormat, source: str, reason: str) -> ImageError:
    name = describe_source(source)
    reason = abbreviated(reason or "no reason given")
    if _TOO_LARGE.search(reason):
        return _too_large(content, source, reason)
    if _UNSUPPORTED.search(reason):
        return _rare(content, source, reason, _CONVERT)
    return ImageError(
        f"cannot read `{name}`: {content.name} that is cut off or damaged ({reason})",
        kind="truncated",
        hint="copy or download it again",
    )


def _too_large(content: FileFormat, source: str, reason: str) -> ImageError:
    return ImageError(
        f"cannot read `{describe_source(source)}`: {content.name} that is too large ({reason})",
        kind="too_large",
        hint="shrink it first",
    )


def _rare(content: FileFormat, source: str, reason: str, hint: str) -> ImageError:
    return ImageError(
        f"cannot read `{describe_source(source)}`: {content.name} of a rare kind ({reason})",
        kind="unsupported",
        hint=hint,
    )


def _list_hint(content: FileFormat, source: str) -> str | None:
    """Return the hint for a text that may be a list of pictures; None if it cannot be one."""
    extension = os.path.splitext(source)[1].lower()
    if content.name != "text" or is_uri(source) or extension not in _LISTS:
        return None
    hint = f"`idefics caption --filelist {describe_source(source)}` reads a list"
    return f"{content.hint}; {hint}" if extension == ".txt" else hint


def unusable(content: FileFormat, source: str, hint: str | None = None) -> ImageError:
    """Return the error for a file that is not a readable picture."""
    return ImageError(
        f"cannot read `{describe_source(source)}`: it is {content.name}",
        kind=content.kind,
        hint=hint or _list_hint(content, source) or content.hint,
    )
