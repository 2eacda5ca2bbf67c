"""References of a schema to other parts of it."""

from __future__ import annotations

from collections.abc import Mapping


def follow_reference(schema: Mapping[str, object], ref: str) -> object:
    """Return the part of *schema* to which *ref*, such as `#/$defs/NAME`, leads; None if to none.

    `#` is the whole schema.
    """
    found: object = schema
    for name in filter(None, ref.removeprefix("#").split("/")):
        if not isinstance(found, Mapping):
            return None
        found = found.get(name.replace("~1", "/").replace("~0", "~"))
    return found
