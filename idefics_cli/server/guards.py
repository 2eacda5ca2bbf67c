"""The guards before the app: who may ask at all. They read nothing but the head of a request."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idefics_cli.core.servers import is_loopback
from idefics_cli.server.errors import ApiError
from idefics_cli.server.exchange import exchange_of, send_json

OPEN_PATH = "/health"
"""The only path that needs no key."""

_METHODS = b"GET, POST, OPTIONS"
_HEADERS = b"authorization, content-type, x-request-id"


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask.

    Attributes:
        key: The key that requests must have; None asks for none.
        origins: Origins of web pages that may ask, as `https://host`; no other page may.
        hosts: Names of the server in the `Host` header; None allows any name.
    """

    key: bytes | None = None
    origins: frozenset[str] = frozenset()
    hosts: frozenset[str] | None = frozenset()


class Guards:
    """Refuses requests by their `Host`, `Origin` and key, before the app sees them.

    Args:
        app: Answers the others.
        access: Who may ask.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            origin = self._check_origin(scope)
        except ApiError as error:
            await _refuse(scope, send, error)
            return
        if origin is not None:
            send = _with_origin(send, origin)
            if scope["method"] == "OPTIONS":
                await _answer_preflight(send)
                return
        try:
            self._check_key(scope)
        except ApiError as error:
            await _refuse(scope, send, error)
            return
        await self._app(scope, receive, send)

    def _check_origin(self, scope: Scope) -> bytes | None:
        """Check the host and the origin, and return the origin; None if it has none."""
        hosts = self._access.hosts
        names = _values(scope, b"host")
        if hosts is not None and not (len(names) == 1 and _is_own(names[0], hosts)):
            raise ApiError(
                403,
                "the `Host` header has a name that is not of this machine: `idefics serve "
                "--allowed-host NAME` allows one",
                code="host_not_allowed",
            )
        origins = _values(scope, b"origin")
        if not origins:
            return None
        if len(origins) > 1 or origins[0].decode("latin-1") not in self._access.origins:
            raise ApiError(
                403,
                "web pages may not ask this server: `idefics serve --origin ORIGIN` allows one",
                code="origin_not_allowed",
            )
        return origins[0]

    def _check_key(self, scope: Scope) -> None:
        key = self._access.key
        # The path of the scope is what the app routes by. A URL that is made with the `Host` header
        # could have another path (CVE-2026-48746 of vLLM).
        if key is None or scope["path"] == OPEN_PATH:
            return
        given = _values(scope, b"authorization")
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        is_right = hmac.compare_digest(token.strip(), key)
        if not is_right or scheme.lower() != b"bearer":
            raise ApiError(
                401,
                "the key of the server is missing or wrong: `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _is_own(value: bytes, hosts: frozenset[str]) -> bool:
    try:
        host = urlsplit(f"//{value.decode('ascii')}").hostname
    except ValueError:
        return False
    # A path or a user name in the header would make another URL of it.
    is_plain = not set(value) & set(b"/\\?#@ ")
    return bool(host) and is_plain and (is_loopback(host or "") or host in hosts)


def _values(scope: Scope, name: bytes) -> Sequence[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _with_origin(send: Send, origin: bytes) -> Send:
    async def write(message: Message) -> None:
        if message["type"] == "http.response.start":
            named = [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
            message["headers"] = [*message.get("headers", []), *named]
        await send(message)

    return write


async def _answer_preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", _HEADERS),
        (b"access-control-max-age", b"600"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(scope: Scope, send: Send, error: ApiError) -> None:
    exchange_of(scope).note_fault(error)
    await send_json(send, error.status, error.body(), error.headers)
