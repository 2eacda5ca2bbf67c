"""The short notation of schemas: `caption, people int, mood [good|bad], tags str[]`.

The notation of the program `llm` (0.32, `schema_dsl`) is a part of it, and has the same meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from idefics_cli.core.errors import UsageError

TYPES: Mapping[str, str] = MappingProxyType(
    {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
)
"""The types of the notation, and their names in JSON Schema."""

_HINT = "`--schema 'caption, people int, indoor bool, mood [good|bad], tags str[]'`"


def schema_of_fields(text: str) -> dict[str, object]:
    """Return the JSON Schema of *text*, an object with one property for each field.

    Fields are separated by line breaks or, on a single line, by commas. A field is a name, then
    perhaps a type, then perhaps a colon and a description. A type is a key of `TYPES`, such a key
    with `[]` for a list, or `[good|bad]` for a choice of texts. A name with `?` may be left out of
    the reply.

    Raises:
        UsageError: If there is no field, two fields have one name, or a type is unknown.
    """
    parts = text.split("\n") if "\n" in text else text.split(",")
    properties: dict[str, object] = {}
    required = []
    for part in (part.strip() for part in parts):
        if not part:
            continue
        described, _, description = part.partition(":")
        words = described.split(None, 1)
        name = words[0].removesuffix("?") if words else ""
        if not name:
            raise UsageError(f"the field `{part}` of the schema has no name", hint=_HINT)
        if name in properties:
            raise UsageError(f"the schema has two fields `{name}`")
        schema = _type(words[1].strip() if len(words) > 1 else "", name)
        if description.strip():
            schema["description"] = description.strip()
        properties[name] = schema
        if not words[0].endswith("?"):
            required.append(name)
    if not properties:
        raise UsageError("the schema has no fields", hint=_HINT)
    return {"type": "object", "properties": properties, "required": required}


def _type(kind: str, name: str) -> dict[str, object]:
    if not kind:
        return {"type": "string"}
    if kind in TYPES:
        return {"type": TYPES[kind]}
    if kind.startswith("[") and kind.endswith("]"):
        choices = [choice.strip() for choice in kind[1:-1].split("|")]
        if all(choices):
            return {"enum": list(dict.fromkeys(choices))}
    if kind.removesuffix("[]") in TYPES:
        return {"type": "array", "items": {"type": TYPES[kind.removesuffix("[]")]}}
    raise UsageError(
        f"the field `{name}` of the schema has an unknown type `{kind}`",
        hint=f"there are {', '.join(TYPES)}, lists such as str[], and choices such as [good|bad]",
    )
