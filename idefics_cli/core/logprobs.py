"""The probability of a token, as the API of OpenAI tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The probability of a token of a reply.

    Attributes:
        text: The token alone.
        data: Its bytes in UTF-8, which may be a part of a character.
        logprob: Natural logarithm of its probability, before temperature, penalties and
            constraints; -9999 if it could not come.
        top: The likeliest tokens instead of it, the likeliest first; each has no *top*.
    """

    text: str
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
