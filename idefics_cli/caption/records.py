"""Records of what became of a picture."""

from __future__ import annotations

import logging
import re

from idefics_cli.core.errors import IdeficsError, ImageError
from idefics_cli.core.types import CaptionRecord, Completion
from idefics_cli.engine import Prepared

_log = logging.getLogger(__name__)


def captioned(
    key: str, prepared: Prepared, completion: Completion, *, seconds: float
) -> CaptionRecord:
    """Return the record of a picture that was answered, with *seconds* of the model's time."""
    width = height = None
    if prepared.pictures:
        width, height = prepared.pictures[0].size
    return CaptionRecord(
        key,
        caption=completion.text.strip(),
        finish=completion.finish,
        width=width,
        height=height,
        new_tokens=completion.new_tokens,
        seconds=seconds,
    )


def failed(key: str, error: Exception) -> CaptionRecord:
    """Return the record of a picture that could not be captioned.

    Its `error_kind` is `ImageError.kind`, the snake-case name of another class of ours, or
    "bug" for an error that is none of ours; that one is also logged with its traceback.
    """
    if isinstance(error, IdeficsError):
        kind = error.kind if isinstance(error, ImageError) else _snake(type(error).__name__)
        return CaptionRecord(key, error=_line(str(error)), error_kind=kind, hint=error.hint)
    _log.debug("`%s` failed", key, exc_info=error)
    return CaptionRecord(key, error=_line(f"{type(error).__name__}: {error}"), error_kind="bug")


def _snake(name: str) -> str:
    # "MemoryLimitError" -> "memory_limit"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Error")).lower()


def _line(text: str) -> str:
    return " ".join(text.split())
