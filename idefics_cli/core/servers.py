"""Servers that run models: where they are, and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

UPLOAD_EDGE = 2048
"""The longer side of a picture is scaled down to this number of pixels, except for our own server.

No model of the family sees more."""


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server with OpenAI's API, which runs the model.

    Attributes:
        url: The address before `/chat/completions`, without a password.
        key: The key that requests must have; "" for none.
        owner: What `/v1/models` says who owns the model: "idefics" is `idefics serve`.
        context_tokens: Number of tokens that the model takes; None if the server does not say it.
        revision: The commit of the weights, if the server says it.
        root: The repository of the model, if the server says it.
        origin_hint: What errors add to their hints: where the address comes from; "" if the user
            has typed it.
    """

    url: str
    key: str = field(default="", repr=False)
    owner: str = ""
    context_tokens: int | None = None
    revision: str | None = None
    root: str = ""
    origin_hint: str = field(default="", compare=False)

    @property
    def is_ours(self) -> bool:
        """Whether the server is `idefics serve`."""
        return self.owner == "idefics"


def is_loopback(host: str) -> bool:
    """Whether *host* names this machine only, as `localhost` or `127.0.0.1`."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
