"""Every value inside a JSON value, and copies in which one of them is another."""

from __future__ import annotations

from collections.abc import Iterator

Place = tuple[str | int, ...]
"""The keys and indices from a whole value to a value inside it."""


def places(value: object, path: Place = ()) -> Iterator[Place]:
    """Yield the place of *value*, which is *path*, and those of all values inside it."""
    yield path
    parts = value.items() if isinstance(value, dict) else ()
    for key, part in enumerate(value) if isinstance(value, list) else parts:
        yield from places(part, (*path, key))


def replaced(value: object, path: Place, new: object) -> object:
    """Return *value* with *new* at *path*."""
    if not path:
        return new
    first, *rest = path
    if isinstance(value, dict):
        return {**value, first: replaced(value[first], tuple(rest), new)}
    assert isinstance(value, list)
    assert isinstance(first, int)
    copy = list(value)
    copy[first] = replaced(copy[first], tuple(rest), new)
    return copy
