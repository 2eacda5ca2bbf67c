"""Requests may ask for JSON by a schema or for text by a pattern, each for its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.core.errors import PromptError
from idefics_cli.demo.samples import write_samples
from idefics_cli.engine.schema.requested import form_of
from tests.support.commands import Ran, run

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "count": {"type": "integer", "maximum": 9}},
    "required": ["mood", "count"],
    "additionalProperties": False,
}
OPENAI = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"scenes/{write_samples(Path('scenes'), count=1, seed=3)[0].file_name}"


def batch(rows: list[Any], *options: str) -> Ran:
    Path("r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return run("batch", "r.jsonl", "-m", "demo", *options)


def test_each_request_of_a_batch_has_its_own_form(picture: str) -> None:
    asked = {"prompt": "How many shapes are there?", "image": picture}
    body = {"messages": [{"role": "user", "content": "Hello."}], "response_format": OPENAI}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    rows = [
        {**asked, "response_format": OPENAI},
        {**asked, "guided_regex": r"\d{3}"},
        asked,
        line,
        {**asked, "structured_outputs": {"json": SCHEMA}},
    ]
    ran = batch(rows)
    assert ran.code == 0, ran.err
    first, second, third, fourth, fifth = map(json.loads, ran.out.splitlines())
    for reply in (first["reply"], fifth["reply"]):
        assert reply.keys() == {"mood", "count"}
    assert first["response_format"] == OPENAI
    assert len(second["reply"]) == 3
    assert second["reply"].isdecimal()
    assert third["reply"] == json.loads(batch([asked]).out)["reply"]
    content = fourth["response"]["body"]["choices"][0]["message"]["content"]
    assert json.loads(content).keys() == {"mood", "count"}


def test_the_option_is_for_requests_without_a_form(picture: str) -> None:
    asked = {"prompt": "How many shapes are there?", "image": picture}
    ran = batch(
        [asked, {**asked, "guided_regex": "[ab]"}], "--schema", "large bool, mood [good|bad]"
    )
    assert ran.code == 0, ran.err
    first, second = (json.loads(line)["reply"] for line in ran.out.splitlines())
    assert first.keys() == {"large", "mood"}
    assert isinstance(first["large"], bool)
    assert second in ("a", "b")


def test_choices_are_for_all_requests_or_for_one(picture: str) -> None:
    asked = {"prompt": "Is there a shape?", "image": picture}
    messages = [{"role": "user", "content": "Is this a chat?"}]
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    rows = [
        asked,
        {**asked, "guided_choice": ["red", "blue", "no"]},
        {**line, "body": {"messages": messages, "structured_outputs": {"choice": ["a", "b"]}}},
        {**line, "custom_id": "b", "body": {"messages": messages}},
        {**asked, "guided_choice": "red"},
        {**asked, "guided_choice": ["red", 1]},
        {**asked, "guided_choice": ["red"]},
    ]
    ran = batch(rows, "--choice", "yes", "--choice", "no")
    assert ran.code == 3, ran.err
    first, second, third, fourth, *wrong = map(json.loads, ran.out.splitlines())
    assert first["reply"].keys() == {"choice", "confidence", "mass", "p_yes", "p_no"}
    assert sum(first["reply"][name] for name in ("p_yes", "p_no")) == pytest.approx(1, abs=2e-6)
    assert second["reply"]["choice"] in ("red", "blue", "no")
    single = {**asked, "guided_choice": ["red", "blue", "no"]}
    assert json.loads(batch([single]).out)["reply"] == second["reply"]
    content = [
        each["response"]["body"]["choices"][0]["message"]["content"] for each in (third, fourth)
    ]
    assert content[0] in ("a", "b")
    assert content[1] in ("yes", "no")
    assert [each["error"].split(": ", 1)[1] for each in wrong] == [
        "`guided_choice` is not a list but text",
        "`guided_choice` is not text but a number",
        "`guided_choice`: one choice is no choice: give two or more (`--choice yes --choice no`)",
    ]


def test_a_reply_that_is_cut_is_an_error_row(picture: str) -> None:
    row = {"prompt": "Describe it.", "image": picture, "response_format": OPENAI, "max_tokens": 3}
    ran = batch([row])
    assert ran.code == 1
    record = json.loads(ran.out)
    assert record["reply"] is None
    assert "the answer was cut after 3 tokens, before its JSON was complete" in record["error"]


def test_another_schema_is_another_run(picture: str) -> None:
    rows = [{"prompt": "How many shapes are there?", "image": picture}]
    assert batch(rows, "-o", "a.jsonl", "--regex", "[ab]").code == 0
    ran = batch(rows, "-o", "a.jsonl", "--regex", "[abc]")
    assert ran.code == 2
    assert "had other settings: constraint: `regex: [ab]`, now `regex: [abc]`" in ran.err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_format": "json"}, "`response_format` is not an object but text"),
        ({"response_format": {"type": "json_object"}}, "`response_format.type` is not supported"),
        (
            {"response_format": {"type": "json_schema"}},
            "`response_format.json_schema` is not an object but null",
        ),
        ({"guided_json": [1]}, "`guided_json` is not a JSON Schema but a list"),
        ({"guided_json": "/etc/passwd"}, "`guided_json` is not a JSON Schema"),
        ({"guided_regex": 3}, "`guided_regex` is not text but a number"),
        ({"structured_outputs": {"grammar": "a"}}, "`structured_outputs` is not supported"),
        (
            {"guided_json": SCHEMA, "guided_regex": "a"},
            "`guided_json` and `guided_regex` exclude each other",
        ),
    ],
)
def test_a_wrong_form_is_refused_by_the_name_of_its_field(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError) as info:
        form_of(fields, max_new_tokens=99)
    assert str(info.value) == message


def test_a_pattern_that_cannot_be_compiled_names_its_field() -> None:
    with pytest.raises(PromptError, match=r"^`guided_regex`: "):
        form_of({"guided_regex": "("}, max_new_tokens=99)


def test_text_is_no_form() -> None:
    assert (
        form_of({"response_format": {"type": "text"}, "guided_json": None}, max_new_tokens=9)
        is None
    )
