"""JSON objects from outside, read strictly: programs send them, and people write them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from idefics_cli.core.errors import PromptError

JsonObject: TypeAlias = Mapping[str, object]
"""A JSON object."""

# Maximum length of a JSON text. No model has a context for a text of this length.
_MOST_CHARACTERS = 4_000_000
_MOST_LEVELS = 100
# Marks the place of NaN, Infinity or a number that is too large for a float, until it is refused.
_ODD = object()


def decode_object(
    text: bytes, *, syntax_hint: str | None = None, shape_hint: str | None = None
) -> JsonObject:
    """Return the object that *text* holds.

    Args:
        text: JSON in UTF-8.
        syntax_hint: The fix for a text that is not JSON.
        shape_hint: The fix for JSON that is not an object.

    Raises:
        PromptError: If it is not a JSON object in UTF-8, or gives a key twice.
    """
    odd: list[str] = []

    def note(text: str) -> object:
        odd.append(text)
        return _ODD

    def number(text: str) -> object:
        value = float(text)
        return note(text) if math.isinf(value) else value

    try:
        value = json.loads(
            text.decode(), object_pairs_hook=_object, parse_constant=note, parse_float=number
        )
    except UnicodeDecodeError as error:
        raise PromptError(f"not UTF-8 text (byte {error.start + 1})") from None
    except RecursionError:
        raise PromptError(_TOO_DEEP) from None
    except ValueError as error:
        raise PromptError(f"not valid JSON: {_reason(error)}", hint=syntax_hint) from None
    _check_levels(value)
    if odd:
        raise PromptError(f"`{_name_of_odd(value)}` is {odd[0][:40]}, which is not a JSON number")
    if not isinstance(value, dict):
        raise PromptError("not a JSON object", hint=shape_hint)
    return value


def checked_text(value: object, name: str) -> str:
    r"""Return *value* if it is text.

    Args:
        value: A value of an object.
        name: Its name in messages.

    Raises:
        PromptError: If it is something else, is too long for a model, or holds half of a
            character, as "\ud800".
    """
    if not isinstance(value, str):
        raise PromptError(f"`{name}` is not text but {kind_of(value)}")
    if len(value) > _MOST_CHARACTERS:
        raise PromptError(
            f"`{name}` is longer than {_MOST_CHARACTERS:,} characters",
            hint="no model has such a long context",
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PromptError(f"`{name}` holds half of a character") from None
    return value


def kind_of(value: object) -> str:
    """Return what *value* is in JSON, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "not a JSON value")


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return str(error)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`{doubled[:60]}` is given twice")
    return value


_TOO_DEEP = f"not valid JSON: it is nested deeper than {_MOST_LEVELS} levels"


def _check_levels(value: object) -> None:
    """Raise a PromptError if *value* is nested so deeply that no code could walk through it."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        below: list[object] = []
        for one in level:
            if isinstance(one, (dict, list)):
                below += one.values() if isinstance(one, dict) else one
        if not below:
            return
        level = below
    raise PromptError(_TOO_DEEP)


def _name_of_odd(value: object, name: str = "") -> str | None:
    """Return the name of the first value that is not a JSON number, such as `body.seed`."""
    if value is _ODD:
        return name
    pairs: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict):
        pairs = ((f"{name}.{key}".lstrip("."), one) for key, one in value.items())
    elif isinstance(value, list):
        pairs = ((f"{name}[{at}]", one) for at, one in enumerate(value))
    return next((found for key, one in pairs if (found := _name_of_odd(one, key))), None)
