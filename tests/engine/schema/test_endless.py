"""Schemas whose values would never end are refused, and others are not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from idefics_cli.core.errors import UsageError
from idefics_cli.engine.schema.endless import can_end
from idefics_cli.engine.schema.form import regex_form, schema_form

NODE = {"type": "object", "properties": {"child": {"$ref": "#"}}}
ENDLESS: list[dict[str, Any]] = [
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {**NODE, "required": ["child"]},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1},
    {"anyOf": [{**NODE, "required": ["child"]}, {"allOf": [{"$ref": "#"}]}]},
]
FINITE: list[dict[str, Any]] = [
    NODE,
    {"type": "array", "items": {"$ref": "#"}},
    {"anyOf": [{"type": "null"}, {**NODE, "required": ["child"]}]},
    {"type": ["object", "null"], "properties": NODE["properties"], "required": ["child"]},
    {
        "$ref": "#/$defs/list",
        "$defs": {
            "list": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]}},
                "required": ["next"],
            }
        },
    },
    {"enum": [1], "properties": {"child": {"$ref": "#"}}, "required": ["child"]},
]


@pytest.mark.parametrize("schema", ENDLESS)
def test_a_schema_without_an_end_is_refused(schema: dict[str, Any]) -> None:
    assert not can_end(schema)
    with pytest.raises(UsageError):
        schema_form(json.dumps(schema), max_new_tokens=100)


@pytest.mark.parametrize("schema", FINITE)
def test_a_schema_with_an_end_is_not(schema: dict[str, Any]) -> None:
    assert can_end(schema)


def test_a_maze_of_references_is_left_in_time() -> None:
    names = [f"d{number}" for number in range(40)]
    every = {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in names]}
    # It has no end, but only the first steps are searched.
    assert can_end({**every, "$defs": dict.fromkeys(names, every)})


@pytest.mark.parametrize("pattern", ["x\\", "\\", "a\\\\\\"])
def test_a_pattern_that_ends_in_a_backslash_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="ends in a lone backslash"):
        regex_form(pattern)
    with pytest.raises(UsageError, match="ends in a lone backslash"):
        schema_form(json.dumps({"type": "string", "pattern": pattern}), max_new_tokens=100)
    assert regex_form("a\\\\").constraint.text == "a\\\\"


@pytest.mark.parametrize("value", [2**53 + 1, [1, -(2**60)], {"a": [{"b": 10**30}]}])
def test_an_integer_that_would_be_rounded_is_refused(value: object) -> None:
    text = json.dumps({"type": "object", "properties": {"x": {"const": value}}})
    with pytest.raises(UsageError, match="too large for `const`"):
        schema_form(text, max_new_tokens=100)
    exact = text.replace(str(2**53 + 1), str(2**53))
    if exact != text:
        schema_form(exact, max_new_tokens=100)
