"""The bodies of requests, read within limits of bytes and time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from idefics_cli.core.units import format_size
from idefics_cli.server.admission import Place
from idefics_cli.server.errors import ApiError
from idefics_cli.server.exchange import ClientGoneError

# curl shows an answer only if its whole request was read. So a little more is read, and dropped.
_DROPPED_BYTES = 1 << 20
_DROP_SECONDS = 2.0
_CLOSE = {"Connection": "close"}


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """The limits of one body.

    Attributes:
        most_bytes: Largest size.
        seconds: Time in which it must be there; it gets more time while it comes fast enough.
        least_rate: Bytes per second that are fast enough.
    """

    most_bytes: int = 64 * 1024 * 1024
    seconds: float = 60.0
    least_rate: int = 64 * 1024


def check_content_type(headers: Headers) -> None:
    """Check that a body is JSON.

    Other types could be sent by any web page without asking the server first.

    Raises:
        ApiError: If it is something else, or compressed.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if kind != "application/json" or encoding != "identity":
        raise ApiError(
            415,
            "send JSON without compression, with the header `Content-Type: application/json`",
            code="unsupported_media_type",
        )


async def read_body(receive: Receive, headers: Headers, place: Place, limits: BodyLimits) -> bytes:
    """Return the body of a request.

    Args:
        receive: Receives its pieces.
        headers: The head of the request.
        place: Counts its bytes.
        limits: Its limits.

    Raises:
        ApiError: If it is too large or too slow.
        ClientGoneError: If the client left.
    """
    length = _announced(headers)
    if length is not None and length > limits.most_bytes:
        # Who waits for "100 Continue" has sent nothing of the body, and sends nothing after this.
        if headers.get("expect", "").lower() != "100-continue":
            await _drop(receive)
        raise _too_large(limits)
    place.add_bytes(length or 0)
    loop = asyncio.get_running_loop()
    started, body = loop.time(), bytearray()
    try:
        while True:
            allowed = max(limits.seconds, len(body) / limits.least_rate)
            message = await _next_piece(receive, started + allowed)
            piece = message.get("body", b"")
            if len(body) + len(piece) > limits.most_bytes:
                await _drop(receive)
                raise _too_large(limits)
            if length is None:
                place.add_bytes(len(piece))
            body += piece
            if not message.get("more_body", False):
                return bytes(body)
    finally:
        body.clear()  # the traceback of an error would keep it


async def _next_piece(receive: Receive, deadline: float) -> Message:
    try:
        async with asyncio.timeout_at(deadline):
            message = await receive()
    except TimeoutError:
        slow = "the body came too slowly"
        raise ApiError(408, slow, code="request_timeout", headers=_CLOSE) from None
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message


def _announced(headers: Headers) -> int | None:
    text = headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


def _too_large(limits: BodyLimits) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {format_size(limits.most_bytes)}",
        code="request_too_large",
        headers=_CLOSE,
    )


async def _drop(receive: Receive) -> None:
    dropped = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_DROP_SECONDS):
            while dropped < _DROPPED_BYTES:
                message = await receive()
                dropped += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
