"""The forms of replies that users give."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from idefics_cli.core.errors import InputError, UsageError
from idefics_cli.core.types import Constraint
from idefics_cli.engine.schema.form import ReplyColumn, ReplyForm, regex_form, schema_form

FIELDS = "caption: what it shows, people int, mood [good|bad], share float, ok bool, tags str[]"


def form_of(given: object) -> ReplyForm:
    text = given if isinstance(given, str) else json.dumps(given)
    return schema_form(text, max_new_tokens=100)


def test_the_same_schema_from_fields_a_file_and_json_is_the_same_form(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }
    file = tmp_path / "record.json"
    file.write_text("\ufeff" + json.dumps(schema), encoding="utf-8")
    assert form_of("a, b int") == form_of(schema) == form_of(str(file))


def test_fields_become_typed_columns_and_an_instruction() -> None:
    form = form_of(FIELDS)
    assert form.columns == (
        ReplyColumn("caption", "str"),
        ReplyColumn("people", "int"),
        ReplyColumn("mood", "str"),
        ReplyColumn("share", "float"),
        ReplyColumn("ok", "bool"),
        ReplyColumn("tags", "json"),
    )
    assert form.instruction.splitlines() == [
        "Answer as JSON with these fields:",
        "- caption (text): what it shows",
        "- people (whole number)",
        "- mood (one of good, bad)",
        "- share (number)",
        "- ok (true or false)",
        "- tags (list of text)",
    ]
    assert schema_form(FIELDS, max_new_tokens=9, explains=False).instruction == ""


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": ["string", "null"]}, "str"),
        ({"type": ["integer", "number"]}, "float"),
        ({"type": ["integer", "string"]}, "json"),
        ({"enum": [1, 2, None]}, "int"),
        ({"enum": [1, "a"]}, "json"),
        ({"const": True}, "bool"),
        ({"type": "integer", "maximum": 2**63}, "json"),
        ({"type": "integer", "maximum": 2**62, "minimum": 0}, "int"),
        ({"anyOf": [{"type": "string"}]}, "json"),
        ({"type": "object"}, "json"),
        (True, "json"),
    ],
)
def test_the_kind_of_a_column_holds_all_values_of_its_property(schema: object, kind: str) -> None:
    form = form_of({"type": "object", "properties": {"a": schema}})
    assert form.columns == (ReplyColumn("a", kind),)  # type: ignore[arg-type]  # the kinds above


def test_a_reference_at_the_top_leads_to_the_properties() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert form_of({"$ref": "#/$defs/x", "$defs": {"x": inner}}).columns == (
        ReplyColumn("a", "int"),
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}},
        {"type": "string"},
        {"type": "object"},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": True},
    ],
)
def test_replies_that_have_no_fixed_properties_have_no_columns(schema: object) -> None:
    form = form_of(schema)
    assert form.columns == ()
    assert form.instruction.startswith("Answer as JSON")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "the schema is not JSON: "),
        ('{"a": NaN}', "the schema is not JSON: NaN is not JSON"),
        ("nowhere.json", "cannot read the schema `nowhere.json`: no such file"),
        ("{" + '"items": {' * 50_000, "the schema is nested too deeply"),
        ('{"enum": []}', "the schema of the answer cannot be used: Unsatisfiable schema"),
        ('{"type": "foo"}', "the schema of the answer cannot be used: Invalid type: foo"),
        ('{"$ref": "#/nope"}', "the schema of the answer cannot be used: Pointer '/nope' does not"),
        ('{"pattern": "(?=a)", "type": "string"}',
         "the schema of the answer cannot be used: look-around, including look-ahead"),
        ('{"oneOf": [{"type": "string"}, {"type": "string"}]}',
         "the schema of the answer cannot be used: cases of a `oneOf` may both fit; write `anyOf`"),
        ('{"type": "string", "maxLength": "x"}', "the schema of the answer cannot be used: "),
        ('{"type": "string", "maxLength": 1e999}', "the schema of the answer cannot be used: "),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_used_is_an_error(given: str, message: str) -> None:
    with pytest.raises((InputError, UsageError)) as error:
        form_of(given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_schema_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UsageError, match=r"list\.json` is not a JSON object$"):
        form_of(str(tmp_path / "list.json"))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match=r"is not UTF-8 text$"):
        form_of(str(tmp_path / "bytes.json"))
    with pytest.raises(InputError, match="cannot read the schema"):
        form_of(str(tmp_path))


def test_a_pattern_that_cannot_be_used_is_an_error() -> None:
    assert regex_form(r"\d+").constraint == Constraint("regex", r"\d+")
    with pytest.raises(UsageError, match=r"^the pattern of the answer is empty$"):
        regex_form("")
    with pytest.raises(UsageError, match=r"^the pattern of the answer cannot be used: "):
        regex_form("(")
    with pytest.raises(UsageError, match="look-around"):
        regex_form("(?=a)b")


def test_a_missing_llguidance_is_an_error_that_names_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError) as error:
        form_of("a")
    assert error.value.hint == "pip install 'idefics-cli[schema]'"
