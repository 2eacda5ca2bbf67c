"""The short notation of schemas."""

from __future__ import annotations

import pytest

from idefics_cli.core.errors import UsageError
from idefics_cli.engine.schema.fields import schema_of_fields

TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("text", "properties"),
    [
        ("name, age int, weight float, ok bool, bio str",
         {"name": TEXT, "age": {"type": "integer"}, "weight": {"type": "number"},
          "ok": {"type": "boolean"}, "bio": TEXT}),
        ("name: full name, first\nage int: years\n\n",
         {"name": {**TEXT, "description": "full name, first"},
          "age": {"type": "integer", "description": "years"}}),
        ("name str: a: b", {"name": {**TEXT, "description": "a: b"}}),
        (" , name,", {"name": TEXT}),
        ("name\tint", {"name": {"type": "integer"}}),
    ],
)  # fmt: skip
def test_the_notation_of_llm_has_its_meaning(text: str, properties: dict[str, object]) -> None:
    assert schema_of_fields(text) == {
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }


def test_fields_can_be_choices_lists_and_optional() -> None:
    assert schema_of_fields("mood [good|very bad], tags str[], people? int") == {
        "type": "object",
        "properties": {
            "mood": {"enum": ["good", "very bad"]},
            "tags": {"type": "array", "items": TEXT},
            "people": {"type": "integer"},
        },
        "required": ["mood", "tags"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the schema has no fields"),
        (" , ", "the schema has no fields"),
        ("a, a int", "the schema has two fields `a`"),
        (": what", "the field `: what` of the schema has no name"),
        ("age number", "the field `age` of the schema has an unknown type `number`"),
        ("age int extra", "the field `age` of the schema has an unknown type `int extra`"),
        ("mood [good|]", "the field `mood` of the schema has an unknown type `[good|]`"),
    ],
)
def test_wrong_fields_are_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        schema_of_fields(text)
    assert str(error.value) == message
    assert error.value.hint or "two fields" in message
