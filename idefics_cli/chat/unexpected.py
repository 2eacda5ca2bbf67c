"""The conversion of unexpected errors to errors that a chat can show, so that it can continue."""

from __future__ import annotations

import logging

from idefics_cli.core.errors import IdeficsError, MemoryLimitError
from idefics_cli.core.text import abbreviated

_log = logging.getLogger(__name__)
_MESSAGE_CHARACTERS = 300


def as_shown_error(error: Exception) -> IdeficsError:
    """Return *error* itself if it is an `IdeficsError`, else an `IdeficsError` that names it."""
    if isinstance(error, IdeficsError):
        return error
    _log.debug("unexpected error", exc_info=error)
    if isinstance(error, MemoryError):
        hint = "fewer or smaller pictures, or a shorter conversation, need less"
        return MemoryLimitError("out of memory", hint=hint)
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    return IdeficsError(
        f"unexpected error: {abbreviated(text, _MESSAGE_CHARACTERS)}",
        hint="the chat continues; `idefics doctor --json` describes this computer for a bug report",
    )
