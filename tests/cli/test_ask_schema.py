"""`idefics ask --schema` and `--regex`: the request, the answer, and answers that are cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from idefics_cli.core.types import Constraint
from tests.support.commands import World, run
from tests.support.fakes import FakeEngine

FIELDS = "caption: what it shows, people int"
SCHEMA = {
    "type": "object",
    "properties": {
        "caption": {"type": "string", "description": "what it shows", "maxLength": 80},
        "people": {
            "type": "integer", "minimum": -999_999_999_999_999, "maximum": 999_999_999_999_999,
        },
    },
    "required": ["caption", "people"],
    "additionalProperties": False,
}  # fmt: skip
TOLD = "Answer as JSON with these fields:\n- caption (text): what it shows\n- people (whole number)"
REPLY = '{"caption": "A cat.", "people": 0}'
LIMIT = ("--max-new-tokens", "20")


def test_a_schema_constrains_the_answer_and_tells_the_model_its_fields() -> None:
    world = World(FakeEngine(REPLY))
    ran = run("ask", "What?", "--schema", FIELDS, *LIMIT, services=world.services)
    assert tuple(ran) == (0, REPLY + "\n", "")
    (request,) = world.engine.requests
    assert request.constraint is not None
    assert request.constraint.kind == "schema"
    assert json.loads(request.constraint.text) == SCHEMA
    assert request.messages[-1].text == f"What?\n{TOLD}"


@pytest.mark.parametrize("words", [("--no-schema-prompt",), ("--raw",)])
def test_the_prompt_stays_as_it_is_on_request_and_if_it_is_raw(words: tuple[str, ...]) -> None:
    world = World(FakeEngine(REPLY))
    ran = run("ask", "What?", "--schema", FIELDS, *words, services=world.services)
    assert ran.code == 0
    assert world.engine.requests[0].messages[-1].text == "What?"
    assert world.engine.requests[0].constraint is not None


def test_a_variable_leaves_the_fields_out_of_prompts() -> None:
    world = World(FakeEngine(REPLY), IDEFICS_SCHEMA_PROMPT="off")
    assert run("ask", "What?", "--schema", FIELDS, services=world.services).code == 0
    assert world.engine.requests[0].messages[-1].text == "What?"


def test_a_pattern_constrains_the_answer() -> None:
    world = World(FakeEngine("2024-05"))
    ran = run("ask", "When?", "--regex", r"\d{4}-\d{2}", services=world.services)
    assert tuple(ran) == (0, "2024-05\n", "")
    assert world.engine.requests[0].constraint == Constraint("regex", r"\d{4}-\d{2}")
    assert world.engine.requests[0].messages[-1].text == "When?"


CUT = (
    "error: the answer was cut after 2 tokens, before its JSON was complete\n"
    "hint: `--max-new-tokens` sets the limit\n"
)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_cut_answer_is_an_error_and_never_on_stdout(is_terminal: bool) -> None:
    world = World(FakeEngine('{"caption": "A cat.'))
    words = ("ask", "What?", "--schema", FIELDS, "--max-new-tokens", "2")
    ran = run(*words, services=world.services, terminal=is_terminal)
    assert (ran.code, ran.out) == (1, "")
    if is_terminal:
        assert '{"caption": "A\n' in ran.err
        assert CUT.splitlines()[0].removeprefix("error: ") in ran.err
    else:
        assert ran.err == '{"caption": "A\n' + CUT


def test_json_has_a_cut_answer_as_a_part() -> None:
    world = World(FakeEngine('{"caption": "A cat.'))
    words = ("ask", "What?", "--schema", FIELDS, "--max-new-tokens", "2", "--json")
    ran = run(*words, services=world.services)
    assert (ran.code, ran.err) == (1, CUT)
    assert ran.record["text"] is None
    assert ran.record["partial"] == '{"caption": "A'
    assert ran.record["finish"] == "length"


def test_a_cut_free_answer_is_an_answer() -> None:
    world = World(FakeEngine("A cat on a mat."))
    ran = run("ask", "What?", "--max-new-tokens", "2", services=world.services)
    assert (ran.code, ran.out) == (0, "A cat\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--schema", "a", "--regex", "b"), "error: --schema and --regex exclude each other\n"),
        (("--schema", '{"not": {}}'), "error: `not` cannot be used, at the top of the schema\n"),
        (("--schema", "a number"), "error: the field `a` of the schema has an unknown type"),
        (("--regex", "("), "error: the pattern of the answer cannot be used: unclosed group\n"),
    ],
)
def test_errors_come_before_a_model_is_looked_up(words: tuple[str, ...], message: str) -> None:
    world = World(FakeEngine())
    ran = run("ask", "What?", *words, services=world.services)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(message)
    assert world.looked_up == []


def test_a_schema_can_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text(json.dumps({**SCHEMA, "title": "A record"}))
    world = World(FakeEngine(REPLY))
    assert run("ask", "What?", "--schema", str(file), services=world.services).code == 0
    constraint = world.engine.requests[0].constraint
    assert constraint is not None
    assert json.loads(constraint.text) == {**SCHEMA, "title": "A record"}
