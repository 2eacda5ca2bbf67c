"""The check that a schema allows a reply that ends."""

from __future__ import annotations

from collections.abc import Mapping

from idefics_cli.engine.schema.references import follow_reference

_MOST_STEPS = 10_000
"""A schema that needs more steps of the check counts as one that ends."""


def can_end(schema: Mapping[str, object]) -> bool:
    """Return whether a finite JSON value can match *schema*.

    An object that must contain itself has no end, and neither has a `$ref` that leads to itself.
    """
    return _Search(schema).ends(schema, ())


class _Search:
    def __init__(self, root: Mapping[str, object]) -> None:
        self._root = root
        self._steps = 0

    def ends(self, schema: object, refs: tuple[str, ...]) -> bool:
        """Return whether a value of *schema*, which stands behind *refs*, can be finite."""
        self._steps += 1
        if not isinstance(schema, Mapping) or self._steps > _MOST_STEPS:
            return True
        if "enum" in schema or "const" in schema:
            return True
        if isinstance(ref := schema.get("$ref"), str) and (
            ref in refs or not self.ends(follow_reference(self._root, ref), (*refs, ref))
        ):
            return False
        for key in ("anyOf", "oneOf"):
            choices = schema.get(key)
            if isinstance(choices, list) and not any(self.ends(each, refs) for each in choices):
                return False
        parts = schema.get("allOf")
        if isinstance(parts, list) and not all(self.ends(each, refs) for each in parts):
            return False
        types = schema.get("type")
        if isinstance(types, list) and len(types) > 1:
            return True
        return all(self.ends(each, refs) for each in _needed(schema))


def _needed(schema: Mapping[str, object]) -> list[object]:
    """Return the schemas of the parts that every value of *schema* has."""
    properties, required = schema.get("properties"), schema.get("required")
    needed: list[object] = []
    if isinstance(properties, Mapping) and isinstance(required, list):
        needed += [properties.get(name) for name in required if isinstance(name, str)]
    least = schema.get("minItems")
    if isinstance(least, int) and least > 0:
        first = schema.get("prefixItems")
        listed = first[:least] if isinstance(first, list) else []
        needed += listed
        if len(listed) < least:
            needed.append(schema.get("items"))
    return needed
