"""Errors as OpenAI's API tells them: a status, and an object with four keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from idefics_cli.core.errors import (
    ContextError,
    DeadEndError,
    ImageError,
    ImageErrorKind,
    MemoryLimitError,
    UsageError,
)
from idefics_cli.core.text import one_line

TYPES: Mapping[int, str] = MappingProxyType(
    {403: "permission_error", 500: "server_error", 503: "service_unavailable_error"}
)
"""The type of an error by its status; that of all other statuses is `invalid_request_error`."""

# The codes are those of OpenAI for pictures. The sentences are ours, and do not hold the text of a
# library or a reason: it could tell what lies behind an address that only this machine reaches.
_IMAGES: Mapping[ImageErrorKind, tuple[str, str]] = MappingProxyType(
    {
        "missing": (
            "invalid_image_url",
            "a picture must be a data: URI or a public http(s) address",
        ),
        "unsupported": (
            "invalid_image_url",
            "a picture must be a data: URI or a public http(s) address",
        ),
        "not_an_image": ("invalid_image_format", "this is not a picture that can be read"),
        "truncated": ("image_parse_error", "the picture is damaged or incomplete"),
        "too_large": ("image_too_large", "the picture has too many bytes or pixels"),
        "fetch_failed": ("failed_to_download_image", "the picture cannot be downloaded"),
    }
)
_FORMAT = "this kind of file is not read: a picture is JPEG, PNG, WebP, GIF, or the like"
# The parameter stands at the beginning of the messages about fields.
_PARAM = re.compile(r"`([\w.\[\]]{1,200})`")
_MOST_CHARACTERS = 500


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: The status of the answer.
        message: What is wrong, for people.
        code: What is wrong, for programs.
        param: The field that is wrong, as `messages[0].content`.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers

    def body(self) -> dict[str, object]:
        """Return the JSON object of the answer."""
        message = one_line(str(self))
        if len(message) > _MOST_CHARACTERS:
            message = message[: _MOST_CHARACTERS - 1] + "…"
        kind = TYPES.get(self.status, "invalid_request_error")
        error = {"message": message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def bad_field(param: str, message: str, *, code: str = "invalid_value") -> ApiError:
    """Return the error for a field with a wrong value."""
    return ApiError(400, f"`{param}` {message}", code=code, param=param)


def unsupported(param: str, why: str = "is not supported") -> ApiError:
    """Return the error for a field that asks for what no answer has."""
    return bad_field(param, why, code="unsupported_parameter")


def overloaded(message: str, code: str, retry_after_seconds: int) -> ApiError:
    """Return the error for a request that may succeed later."""
    headers = {"Retry-After": str(min(60, max(1, retry_after_seconds)))}
    return ApiError(503, message, code=code, headers=headers)


def shutting_down() -> ApiError:
    """Return the error for a request that the end of the server cuts off."""
    return overloaded("the server is shutting down", "shutting_down", 30)


def picture_error(error: ImageError, param: str | None, *, has_data: bool = False) -> ApiError:
    """Return the answer to a request with a picture that cannot be used.

    Args:
        error: What is wrong with it.
        param: The field that holds it.
        has_data: Whether the request itself holds its bytes.
    """
    code, message = _IMAGES[error.kind]
    if has_data and error.kind == "unsupported":
        code, message = _IMAGES["not_an_image"][0], _FORMAT
    return ApiError(400, message, code=code, param=param)


def api_error(error: Exception, request_id: str) -> ApiError:
    """Return the answer for any error; one that is not a fault of the request tells no detail."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ImageError):
        return picture_error(error, None)
    if isinstance(error, ContextError):
        return ApiError(
            400,
            f"this model's maximum context length is {error.context_tokens} tokens, and the prompt"
            f" has {error.prompt_tokens}",
            code="context_length_exceeded",
            param="messages",
        )
    if isinstance(error, UsageError | DeadEndError):
        found = _PARAM.match(str(error))
        return ApiError(
            400, str(error), code="invalid_value", param=found[1] if found is not None else None
        )
    if isinstance(error, MemoryLimitError):
        return ApiError(
            500,
            "the server has too little memory for this request",
            code="out_of_memory",
            headers={"x-should-retry": "false"},
        )
    return ApiError(500, f"internal error, request {request_id}", code="internal_error")
