"""What a server's error means: for one request, for all requests, or for now."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import MappingProxyType

from idefics_cli.core.errors import (
    ContextError,
    IdeficsError,
    ImageError,
    ImageErrorKind,
    MemoryLimitError,
    NoServerError,
    ServerError,
)
from idefics_cli.core.text import one_line

KEY_HINT = "the key is in the variable IDEFICS_API_KEY, or in the file of `--api-key-file`"

_MOST_WAIT_SECONDS = 600.0
_MOST_CHARACTERS = 300
# The server cannot answer anybody now; a proxy says the last two if its server is gone.
_UNAVAILABLE = frozenset({429, 502, 503, 504})
_BROKEN = frozenset({408, 409, 425, 500, 529})
_IMAGE_CODES: Mapping[str, ImageErrorKind] = MappingProxyType(
    {
        "invalid_image_url": "unsupported",
        "invalid_image_format": "not_an_image",
        "invalid_base64_image": "not_an_image",
        "image_parse_error": "truncated",
        "image_too_large": "too_large",
        "empty_image_file": "not_an_image",
    }
)
_CONTEXT = re.compile(r"context (?:length|size|window)|too many tokens", re.IGNORECASE)
_MOST_CONTEXT = re.compile(r"context (?:length|size) (?:is|of|\() ?(\d{1,9}) tokens", re.IGNORECASE)
_PROMPT = re.compile(r"(?:prompt has|requested|resulted in|request \() ?(\d{1,9})", re.IGNORECASE)
_PICTURES = re.compile(r"image|vision|multimodal|multi-modal|mmproj", re.IGNORECASE)
_BLIND = re.compile(
    r"not support|unsupported|not a multi-?modal|at most 0|missing data|only text|text.only",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ServerFault:
    """An answer that is an error.

    Attributes:
        error: The error to raise if no further try is made.
        is_retried: Whether the same request may succeed later.
        is_unavailable: Whether the server answers no request now.
        wait_seconds: How long the server wants clients to wait; None if it does not say.
        is_too_large: Whether the request has too many bytes.
    """

    error: IdeficsError
    is_retried: bool = False
    is_unavailable: bool = False
    wait_seconds: float | None = None
    is_too_large: bool = False


def fault_of(
    url: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    model: str = "",
    has_pictures: bool = False,
) -> ServerFault:
    """Return what an answer with an error means.

    Args:
        url: The server.
        status: The status; 0 for an error in a stream that began well.
        headers: The headers, with names in lower case.
        body: JSON in any of the shapes of servers, or HTML.
        model: The model that the request named.
        has_pictures: Whether the request had pictures.
    """
    sentence, code = read_error(body)
    said = f"{url} answers {status}" if status else f"{url} broke its answer off"
    message = f"{said}: {sentence}" if sentence else said
    if status in (401, 403):
        return ServerFault(NoServerError(message, hint=KEY_HINT))
    if status == 404:
        hint = f"`idefics doctor --server {url}` says which models it has"
        return ServerFault(NoServerError(message, hint=hint if model else "is the address right?"))
    if (known := _known_error(message, sentence, code, has_pictures=has_pictures)) is not None:
        return ServerFault(known)
    wait = _wait_seconds(headers)
    if status in _UNAVAILABLE:
        return ServerFault(ServerError(message), True, True, wait)
    is_final = headers.get("x-should-retry") == "false"
    is_broken = status in _BROKEN or status > 504 or not status
    if is_broken and not is_final:
        return ServerFault(ServerError(message), True, False, wait)
    if status == 413:
        error = ServerError(message, hint="a smaller picture, or a larger limit there")
        return ServerFault(error, is_too_large=True)
    return ServerFault(ServerError(message))


def read_error(body: bytes) -> tuple[str, str]:
    """Return the sentence of an error on one line, and its code; each is "" if there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        text = body[:2000].decode("utf-8", "replace")
        title = re.search(r"<title>([^<]{1,200})</title>", text, re.IGNORECASE)
        return _line(title[1] if title else "" if "<" in text else text), ""
    code = ""
    for name in ("error", "detail", "message"):
        if isinstance(value, dict) and name in value:
            code = code or str(value.get("code") or "")
            value = value[name]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = value[0].get("msg", "")
    if isinstance(value, dict):
        code, value = str(value.get("code") or code), value.get("message", "")
    return (_line(value) if isinstance(value, str) else ""), code


def _known_error(
    message: str, sentence: str, code: str, *, has_pictures: bool
) -> IdeficsError | None:
    if code == "context_length_exceeded" or _CONTEXT.search(sentence):
        most, prompt = _MOST_CONTEXT.search(sentence), _PROMPT.search(sentence)
        return ContextError(
            message,
            prompt_tokens=int(prompt[1]) if prompt else 0,
            context_tokens=int(most[1]) if most else 0,
        )
    if code in _IMAGE_CODES:
        return ImageError(message, kind=_IMAGE_CODES[code])
    if code == "out_of_memory":
        return MemoryLimitError(message)
    if has_pictures and _PICTURES.search(sentence) and _BLIND.search(sentence):
        return NoServerError(message, hint="this model does not see pictures; choose another")
    return None


def _wait_seconds(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), _MOST_WAIT_SECONDS)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(0.0, seconds), _MOST_WAIT_SECONDS)


def _line(text: str) -> str:
    line = one_line(" ".join(text.split()))
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 1] + "…"
