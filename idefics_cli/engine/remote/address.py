"""Addresses of servers, as users type them."""

from __future__ import annotations

from urllib.parse import urlsplit

from idefics_cli.core.errors import UsageError
from idefics_cli.core.servers import is_loopback
from idefics_cli.core.text import abbreviated

_EXAMPLE = "`--server http://127.0.0.1:8000`"


def read_address(text: str) -> str:
    """Return the address before `/chat/completions`, as `http://127.0.0.1:8000/v1`.

    Raises:
        UsageError: If *text* is not such an address.
    """
    # What stands before `@` may be a password.
    shown = abbreviated(text.rpartition("@")[2])
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError(f"`{shown}` is not an address", hint=_EXAMPLE) from None
    if parts.username or parts.password:
        raise UsageError(
            "the address of a server holds no password",
            hint="a key belongs into the variable IDEFICS_API_KEY",
        )
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise UsageError(f"`{shown}` is not the address of a server", hint=_EXAMPLE)
    if parts.query or parts.fragment or not text.isprintable() or " " in text.strip():
        raise UsageError(f"`{shown}` is more than the address of a server", hint=_EXAMPLE)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def is_local(url: str) -> bool:
    """Return whether *url* is on this machine, so that nothing leaves it."""
    host = urlsplit(url).hostname or ""
    return is_loopback(host) or host.endswith(".localhost")
