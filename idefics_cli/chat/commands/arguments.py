"""Checks of the words after a slash command."""

from __future__ import annotations

from idefics_cli.core.errors import UsageError


def read_number(words: str, usage: str) -> int:
    """Return *words* as a number.

    Raises:
        UsageError: If *words* are not a whole number from 1; its hint is *usage*.
    """
    if not words.isdecimal() or int(words) < 1:
        message = f"`{words}` is not a number from 1" if words else "a number is missing"
        raise UsageError(message, hint=usage)
    return int(words)


def refuse_words(words: str, name: str) -> None:
    """Check that nothing follows the command *name*.

    Raises:
        UsageError: If there are *words*.
    """
    if words:
        raise UsageError(f"/{name} takes nothing after it, not `{words}`")


def require_words(words: str, usage: str, what: str) -> str:
    """Return *words* if there are any.

    Raises:
        UsageError: If there are none. It says that *what* is missing, and its hint is *usage*.
    """
    if not words:
        raise UsageError(f"{what} is missing", hint=usage)
    return words
