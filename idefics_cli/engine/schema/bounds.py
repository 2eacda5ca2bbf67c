"""The check of a JSON Schema by a walk over it, which also bounds what has no limits.

A model that writes a text, a list or a number without a limit may never come to its end. And a
keyword that the grammar ignores would be a promise that no reply keeps, so it is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from idefics_cli.core.errors import UsageError

# Keywords of JSON Schema that llguidance 1.9 implements. `_MAPS` hold schemas by name, `_LISTS`
# hold lists of schemas, `_SINGLE` hold one schema, and `_VALUES` hold other values. `_ALTERNATIVES`
# are the lists whose schemas are alternatives.
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_ALTERNATIVES = ("anyOf", "oneOf")
_VALUES = frozenset({
    "type", "enum", "const", "$ref", "minLength", "maxLength", "pattern", "format", "minimum",
    "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems",
    "required", "minProperties", "maxProperties",
})  # fmt: skip
# Keywords that do not restrict the reply.
_NOTES = frozenset({
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "readOnly",
    "writeOnly", "deprecated", "contentEncoding", "contentMediaType",
})  # fmt: skip
_KNOWN = frozenset((*_MAPS, *_LISTS, *_SINGLE)) | _VALUES | _NOTES
_FORMATS = frozenset({
    "date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
    "unknown",
})  # fmt: skip

_MOST_CHARACTERS = 2_000
# Text has about four characters for each token.
_CHARACTERS_PER_TOKEN = 4
_MOST_ITEMS = 100
# Whole numbers have at most 15 digits, which a float holds exactly. Other numbers have nine digits
# before the point, and six behind it.
_LARGEST_INTEGER = 10**15 - 1
_LARGEST_NUMBER, _FINEST_STEP = 10**9, 1e-6


@dataclass(frozen=True, slots=True)
class _Walk:
    characters: int
    closes: bool
    """Whether objects get `"additionalProperties": false` if they say nothing about others."""

    def schema(self, schema: object, at: str, *, closes: bool) -> object:
        """Return *schema*, which stands at the JSON pointer *at*, with bounds."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise _error("a schema is an object", at)
        self._check(schema, at)
        found = dict(schema)
        is_mixed = any(key in schema for key in (*_ALTERNATIVES, "$ref"))
        for key in _SINGLE:
            # `items` may be a list, as in older drafts.
            if key in schema and not isinstance(schema[key], list):
                found[key] = self.schema(schema[key], f"{at}/{key}", closes=closes)
        for key in _MAPS:
            found |= self._map(schema, key, at, closes=closes)
        for key in _LISTS:
            if key in schema:
                inner = closes and not (key in _ALTERNATIVES and "properties" in schema)
                found[key] = [
                    self.schema(each, f"{at}/{key}/{number}", closes=inner)
                    for number, each in enumerate(_list(schema[key], f"{at}/{key}"))
                ]
        if "enum" in schema or "const" in schema:
            return found
        if "properties" in schema and closes and not is_mixed:
            found.setdefault("additionalProperties", False)
        return found | self._bounds(found)

    def _map(
        self, schema: Mapping[str, object], key: str, at: str, *, closes: bool
    ) -> dict[str, object]:
        if key not in schema:
            return {}
        inner = schema[key]
        if not isinstance(inner, Mapping):
            raise _error(f"`{key}` is an object", at)
        return {
            key: {
                name: self.schema(each, f"{at}/{key}/{_escaped(name)}", closes=closes)
                for name, each in inner.items()
            }
        }

    def _check(self, schema: Mapping[str, object], at: str) -> None:
        for key, value in schema.items():
            if key not in _KNOWN and not key.startswith("x-"):
                raise _error(f"`{key}` cannot be used", at, hint=_HINTS.get(key))
            if key == "items" and isinstance(value, list):
                raise _error("`items` is a list", at, hint="`prefixItems` is its name now")
            if key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
                raise _error(
                    f"`$ref` leads to `{value}`", at, hint="only `#/$defs/NAME` can be used"
                )
            if key == "pattern" and isinstance(value, str) and ends_in_escape(value):
                raise _error("`pattern` ends in a lone backslash", at)
            if key in ("enum", "const") and (number := _large_integer(value)) is not None:
                raise _error(
                    f"{number} is too large for `{key}`: the limit is 2^53",
                    at,
                    hint="write it as a text",
                )
            if key == "format" and value not in _FORMATS:
                names = ", ".join(sorted(_FORMATS - {"unknown"}))
                raise _error(f"`{value}` is an unknown format", at, hint=f"there are {names}")

    def _bounds(self, schema: Mapping[str, object]) -> dict[str, object]:
        """Return the bounds that *schema* lacks."""
        types = _types(schema)
        bounds: dict[str, object] = {}
        if "string" in types and not {"maxLength", "pattern", "format"} & schema.keys():
            bounds["maxLength"] = max(self.characters, _whole(schema.get("minLength")))
        if "array" in types and "maxItems" not in schema:
            bounds["maxItems"] = max(_MOST_ITEMS, _whole(schema.get("minItems")))
        if "object" in types and not {*_MAPS[:2], "maxProperties", "required"} & schema.keys():
            bounds["maxProperties"] = max(_MOST_ITEMS, _whole(schema.get("minProperties")))
        if "number" in types:
            bounds |= _range(schema, _LARGEST_NUMBER)
            ends = {abs(each) for each in _ends(schema)} - {0}
            if "multipleOf" not in schema and all(end >= 1000 * _FINEST_STEP for end in ends):
                bounds["multipleOf"] = _FINEST_STEP
        elif "integer" in types:
            bounds |= _range(schema, _LARGEST_INTEGER)
        return bounds


def bounded_schema(schema: Mapping[str, object], *, max_new_tokens: int) -> dict[str, object]:
    """Return *schema* with a limit for each text, list, object and number that has none.

    Objects that list their properties get no others, unless the schema says so.

    Args:
        schema: A JSON Schema, draft 2020-12 or earlier.
        max_new_tokens: Largest number of tokens of the reply.

    Raises:
        UsageError: If a keyword cannot be kept. The message has its JSON pointer (RFC 6901).
    """
    characters = min(_MOST_CHARACTERS, _CHARACTERS_PER_TOKEN * max_new_tokens)
    # All parts of `allOf` apply to one object, so none of them may forbid the properties of others.
    closes = not any("allOf" in each for each in _objects(schema))
    try:
        found = _Walk(characters, closes).schema(schema, "", closes=closes)
    except RecursionError:
        raise UsageError("the schema is nested too deeply") from None
    assert isinstance(found, dict)
    return found


_HINTS = {
    "nullable": 'write `"type": ["string", "null"]`',
    "if": "`anyOf` can list the cases",
    "not": "`enum` can list what is allowed",
    "uniqueItems": "leave it out; a list may then have an item twice",
    "$dynamicRef": "`$ref` leads to `#/$defs/NAME`",
    "additionalItems": "`prefixItems` and `items` are the names now",
}


def _error(problem: str, at: str, *, hint: str | None = None) -> UsageError:
    where = f"at `{at}` of the schema" if at else "at the top of the schema"
    return UsageError(f"{problem}, {where}", hint=hint)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _list(value: object, at: str) -> Sequence[object]:
    if not isinstance(value, list):
        raise _error("a list of schemas is needed", at)
    return value


def _types(schema: Mapping[str, object]) -> frozenset[str]:
    found = schema.get("type")
    found = found if isinstance(found, list) else [found]
    return frozenset(each for each in found if isinstance(each, str))


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _range(schema: Mapping[str, object], largest: int) -> dict[str, object]:
    """Return the ends of the range that *schema* leaves open."""
    ends = _ends(schema)
    reach = max((abs(int(end)) for end in ends), default=0)
    # The limit is below 2**63, because llguidance takes only integers of 64 bits.
    largest = max(largest, min(10 * reach, 10**18))
    found: dict[str, object] = {}
    if not {"minimum", "exclusiveMinimum"} & schema.keys():
        found["minimum"] = -largest
    if not {"maximum", "exclusiveMaximum"} & schema.keys():
        found["maximum"] = largest
    return found


def _ends(schema: Mapping[str, object]) -> list[int | float]:
    keys = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    values = [schema.get(key) for key in keys]
    return [value for value in values if isinstance(value, int | float)]


def _objects(value: object) -> Iterator[Mapping[str, object]]:
    """Yield every JSON object in *value*."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def ends_in_escape(pattern: str) -> bool:
    """Return whether a regular expression ends in a backslash that escapes nothing."""
    return (len(pattern) - len(pattern.rstrip("\\"))) % 2 == 1


def _large_integer(value: object) -> int | None:
    """Return an integer in *value* that llguidance would round, as it reads numbers as floats."""
    if isinstance(value, int) and abs(value) > 2**53:
        return value
    inner = value.values() if isinstance(value, Mapping) else value
    if isinstance(inner, str) or not isinstance(inner, Iterable):
        return None
    return next((found for each in inner if (found := _large_integer(each)) is not None), None)
