"""The words after a slash command, checked."""

from __future__ import annotations

from idefics_cli.core.errors import UsageError


def read_number(words: str, usage: str) -> int:
    """Return the number that *words* are.

    Raises:
        UsageError: If they are not a number from 1 on; its hint is *usage*.
    """
    if not words.isdecimal() or int(words) < 1:
        message = f"`{words}` is not a number" if words else "a number is missing"
        raise UsageError(message, hint=usage)
    return int(words)


def refuse_words(words: str, name: str) -> None:
    """Check that nothing follows the command *name*.

    Raises:
        UsageError: If *words* do.
    """
    if words:
        raise UsageError(f"/{name} takes nothing after it, not `{words}`")


def require_words(words: str, usage: str, what: str) -> str:
    """Return *words* if there are any.

    Raises:
        UsageError: If there are none: *what* is missing, and the hint is *usage*.
    """
    if not words:
        raise UsageError(f"{what} is missing", hint=usage)
    return words
