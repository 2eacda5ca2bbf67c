"""200 schemas: each reply of a random model fits its schema, or is refused because it was cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema_rs
import pytest

from idefics_cli.core.errors import CutError
from idefics_cli.core.types import Completion, Sampling
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Prepared
from idefics_cli.engine.schema.form import ReplyForm, schema_form
from tests.support.prompts import ask

EngineOf = Callable[[str], LocalEngine]
# One family for each kind of tokenizer: a grammar depends on nothing else of a model.
FAMILIES = ("idefics2", "smolvlm2")
SCHEMAS = json.loads(
    (Path(__file__).parents[1] / "support" / "schemas.json").read_text(encoding="utf-8")
)
TOKENS = 40
GREEDY = Sampling(max_new_tokens=TOKENS)
# Random weights are nearly even, so that a sampled reply tries every branch of a grammar.
SAMPLED = replace(GREEDY, temperature=1.0)
FREE = replace(GREEDY, max_new_tokens=6)


@pytest.fixture(scope="module")
def forms() -> list[ReplyForm]:
    assert len(SCHEMAS) == 200
    return [schema_form(json.dumps(schema), max_new_tokens=TOKENS) for schema in SCHEMAS]


def with_free_rows(forms: Sequence[ReplyForm], way: Sampling) -> tuple[list[Prepared], set[int]]:
    """Return a request for each form, with a free request after each tenth, and their numbers."""
    prepared, free = [], set()
    for number, form in enumerate(forms):
        prepared.append(_asked(form, replace(way, seed=number)))
        if number % 10 == 0:
            free.add(len(prepared))
            prepared.append(ask(sampling=FREE))
    return prepared, free


def _asked(form: ReplyForm, way: Sampling) -> Prepared:
    prepared = ask(sampling=way)
    return replace(prepared, request=replace(prepared.request, constraint=form.constraint))


def is_complete(form: ReplyForm, schema: object, reply: Completion) -> bool:
    """Return whether *reply* is complete, and then fits; a cut one must be told as cut."""
    error = form.error_of(reply)
    if isinstance(error, CutError):
        assert reply.finish == "length"
        return False
    if error is not None:
        assert "is too large a number" in str(error)
        return False
    assert reply.finish == "stop"
    value = json.loads(reply.text)
    for each in (json.dumps(schema), form.constraint.text):
        jsonschema_rs.validator_for(each, validate_formats=True).validate(value)
    return True


@pytest.mark.parametrize("way", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_each_reply_fits_its_schema_or_is_told_as_cut(
    kind: str, way: Sampling, forms: list[ReplyForm], endless: EngineOf
) -> None:
    engine = endless(kind)
    requests, free = with_free_rows(forms, way)
    replies: list[Completion] = []
    for start in range(0, len(requests), 55):
        replies += engine.complete(requests[start : start + 55])
    (alone,) = engine.complete([ask(sampling=FREE)])
    assert {replies[number].token_ids for number in free} == {alone.token_ids}
    constrained = [reply for number, reply in enumerate(replies) if number not in free]
    complete = [
        is_complete(form, schema, reply)
        for form, schema, reply in zip(forms, SCHEMAS, constrained, strict=True)
    ]
    assert sum(complete) > 120
