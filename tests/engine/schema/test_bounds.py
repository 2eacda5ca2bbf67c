"""The walk over a JSON Schema: what it refuses, and what it bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from idefics_cli.core.errors import UsageError
from idefics_cli.engine.schema.bounds import bounded_schema

LONG = {"type": "string", "maxLength": 400}


def bounded(schema: Mapping[str, object]) -> dict[str, object]:
    return bounded_schema(schema, max_new_tokens=100)


def nested(schema: object) -> dict[str, object]:
    return {"type": "object", "properties": {"a/b~": {"anyOf": [{"type": "null"}, schema]}}}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {}}, "`not` cannot be used"),
        ({"uniqueItems": True}, "`uniqueItems` cannot be used"),
        ({"propertyNames": {}}, "`propertyNames` cannot be used"),
        ({"dependentRequired": {}}, "`dependentRequired` cannot be used"),
        ({"if": {}, "then": {}}, "`if` cannot be used"),
        ({"contains": {}}, "`contains` cannot be used"),
        ({"unevaluatedItems": False}, "`unevaluatedItems` cannot be used"),
        ({"nullable": True}, "`nullable` cannot be used"),
        ({"maxlength": 3}, "`maxlength` cannot be used"),
        ({"items": [{}]}, "`items` is a list"),
        ({"$ref": "https://a.b/c.json"}, "`$ref` leads to `https://a.b/c.json`"),
        ({"type": "string", "format": "iri"}, "`iri` is an unknown format"),
        (7, "a schema is an object"),
        ({"properties": []}, "`properties` is an object"),
    ],
)
def test_what_no_reply_would_keep_is_an_error_with_its_pointer(
    schema: object, message: str
) -> None:
    with pytest.raises(UsageError) as error:
        bounded(nested(schema))
    assert str(error.value) == f"{message}, at `/properties/a~1b~0/anyOf/1` of the schema"


def test_the_top_has_no_pointer() -> None:
    with pytest.raises(UsageError, match=r"^`not` cannot be used, at the top of the schema$"):
        bounded({"not": {}})


def test_a_list_of_schemas_is_a_list() -> None:
    with pytest.raises(UsageError, match=r"^a list of schemas is needed, at `/anyOf` of"):
        bounded({"anyOf": {}})


def test_a_schema_nested_too_deeply_is_an_error() -> None:
    deep: dict[str, object] = {}
    for _ in range(3000):
        deep = {"items": deep}
    with pytest.raises(UsageError, match=r"^the schema is nested too deeply$"):
        bounded(deep)


@pytest.mark.parametrize(
    ("schema", "added"),
    [
        ({"type": "string"}, {"maxLength": 400}),
        ({"type": ["string", "null"]}, {"maxLength": 400}),
        ({"type": "string", "minLength": 900}, {"maxLength": 900}),
        ({"type": "string", "maxLength": 9000}, {}),
        ({"type": "string", "pattern": "^a+$"}, {}),
        ({"type": "string", "format": "date"}, {}),
        ({"type": "string", "enum": ["a"]}, {}),
        ({"type": "string", "const": "a"}, {}),
        ({"type": "array"}, {"maxItems": 100}),
        ({"type": "array", "minItems": 200}, {"maxItems": 200}),
        ({"type": "array", "maxItems": 3}, {}),
        ({"type": "object"}, {"maxProperties": 100}),
        ({"type": "integer"}, {"minimum": 1 - 10**15, "maximum": 10**15 - 1}),
        ({"type": "integer", "minimum": 0}, {"maximum": 10**15 - 1}),
        ({"type": "integer", "exclusiveMaximum": 10**17}, {"minimum": -(10**18)}),
        ({"type": "number"}, {"minimum": -(10**9), "maximum": 10**9, "multipleOf": 1e-6}),
        ({"type": "number", "minimum": 0, "maximum": 1}, {"multipleOf": 1e-6}),
        ({"type": "number", "minimum": 0, "maximum": 1e-8}, {}),
        ({"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.5}, {}),
        ({"type": "boolean"}, {}),
    ],
)
def test_what_has_no_limit_gets_one(schema: dict[str, object], added: dict[str, object]) -> None:
    assert bounded(schema) == schema | added
    assert bounded({"type": "array", "maxItems": 1, "items": schema}) == {
        "type": "array", "maxItems": 1, "items": schema | added,
    }  # fmt: skip


def test_a_text_has_no_more_characters_than_two_thousand() -> None:
    assert bounded_schema({"type": "string"}, max_new_tokens=4000)["maxLength"] == 2000


def test_objects_with_properties_have_no_others() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert bounded(schema) == {
        "type": "object", "properties": {"a": LONG}, "additionalProperties": False,
    }  # fmt: skip
    assert bounded({**schema, "additionalProperties": True})["additionalProperties"] is True


def test_parts_of_one_object_do_not_forbid_the_properties_of_others() -> None:
    part = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    for schema in (
        {"allOf": [part, {"$ref": "#/$defs/b"}], "$defs": {"b": part}},
        {**part, "anyOf": [part, part]},
    ):
        assert "additionalProperties" not in json.dumps(bounded(schema))
    assert json.dumps(bounded({"anyOf": [part, part]})).count("additionalProperties") == 2
