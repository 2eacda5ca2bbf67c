"""Makers of records: the record of a picture has its caption, or the error that prevented it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from idefics_cli.core.errors import IdeficsError, ImageError
from idefics_cli.core.types import CaptionRecord, Finish
from idefics_cli.engine.protocol import Prepared

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaptionReply:
    """The reply to one question about a picture.

    Attributes:
        name: Name of the question; empty for the single caption of a run.
        text: Text for the row.
        finish: Why the reply ended.
        new_tokens: Number of generated tokens.
        seconds: The part of the model's time that this reply took.
        prompt_tokens: Number of tokens of the prompt, image tokens included.
    """

    name: str
    text: str
    finish: Finish
    new_tokens: int
    seconds: float
    prompt_tokens: int = 0


def captioned(
    key: str,
    prepared: Prepared,
    replies: Sequence[CaptionReply],
    *,
    notes: tuple[str, ...] = (),
    examples: int = 0,
) -> CaptionRecord:
    """Return the record of a picture with its *replies*, in the order of the questions.

    Args:
        key: The key of the picture.
        prepared: The request of the first question.
        replies: The replies.
        notes: See `CaptionRecord.notes`.
        examples: Number of pictures of examples, which precede the picture in the prompt.
    """
    width = height = None
    if len(prepared.pictures) > examples:
        width, height = prepared.pictures[examples].size
    # If any reply was cut off, the whole record counts as cut off.
    cut = (reply.finish for reply in replies if reply.finish != "stop")
    return CaptionRecord(
        key,
        caption="\n".join(reply.text for reply in replies),
        finish=next(cut, "stop"),
        width=width,
        height=height,
        new_tokens=sum(reply.new_tokens for reply in replies),
        seconds=sum(reply.seconds for reply in replies),
        answers=tuple((reply.name, reply.text) for reply in replies if reply.name),
        notes=notes,
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
    )


def failed(key: str, error: Exception) -> CaptionRecord:
    """Return the record of a picture that could not be captioned.

    Its `error_kind` is `ImageError.kind` or the snake-case name of another subclass of
    `IdeficsError`. Any other error is a "bug", and is logged with its traceback.
    """
    if isinstance(error, IdeficsError):
        kind = error.kind if isinstance(error, ImageError) else _snake(type(error).__name__)
        return CaptionRecord(key, error=_line(str(error)), error_kind=kind, hint=error.hint)
    _log.debug("`%s` failed", key, exc_info=error)
    return CaptionRecord(key, error=_line(f"{type(error).__name__}: {error}"), error_kind="bug")


def _snake(name: str) -> str:
    # The kind of an error is the name of its class in snake case, without "Error": MemoryLimitError
    # has the kind "memory_limit".
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Error")).lower()


def _line(text: str) -> str:
    return " ".join(text.split())
