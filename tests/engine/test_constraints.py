"""Constrained replies match their schema or pattern, and change no other reply."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import jsonschema_rs
import pytest
import torch

from idefics_cli.core.errors import UsageError
from idefics_cli.core.types import Completion, Constraint, Sampling
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.constraint import Grammars, Guide, refused_tokens
from idefics_cli.engine.local.decode.sampling import Scores
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Prepared
from tests.support.prompts import ask, complete_with
from tests.support.recording import CpuCapture, gpu_inference
from tests.support.serving import serve_all, tokens_of

EngineOf = Callable[[str], LocalEngine]
AloneOf = Callable[[str], list[tuple[int, ...]]]
FAMILIES = ("idefics", "idefics2", "idefics3", "smolvlm2")
SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "people": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
    },
    "required": ["mood", "people", "tags"],
    "additionalProperties": False,
}
JSON = Constraint("schema", json.dumps(SCHEMA))
DATE = Constraint("regex", r"\d{4}-\d{2}")
GREEDY = Sampling(max_new_tokens=90)
WAYS = (
    GREEDY,
    replace(GREEDY, temperature=1.0, seed=3),
    replace(GREEDY, repetition_penalty=1e308),
)


def asked(constraint: Constraint | None, sampling: Sampling) -> Prepared:
    prepared = ask(sampling=sampling)
    return replace(prepared, request=replace(prepared.request, constraint=constraint))


def mixed() -> list[Prepared]:
    free = replace(GREEDY, max_new_tokens=30)
    return [
        asked(constraint, sampling)
        for way in WAYS
        for constraint, sampling in (
            (JSON, way),
            (None, replace(way, max_new_tokens=free.max_new_tokens)),
            (DATE, way),
        )
    ]


@pytest.fixture(scope="module")
def alone_of(endless: EngineOf) -> AloneOf:
    """Return a function from a kind to the replies to `mixed` one by one."""

    @cache
    def get(kind: str) -> list[tuple[int, ...]]:
        return [endless(kind).complete([each])[0].token_ids for each in mixed()]

    return get


def check(answers: list[Completion]) -> None:
    for answer in answers[0::3]:
        assert answer.finish == "stop"
        jsonschema_rs.validate(SCHEMA, json.loads(answer.text))
    for answer in answers[2::3]:
        assert answer.finish == "stop"
        assert re.fullmatch(r"[0-9]{4}-[0-9]{2}", answer.text)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_mixed_batch_matches_and_leaves_free_replies_as_they_are(
    kind: str, endless: EngineOf, alone_of: AloneOf
) -> None:
    answers = endless(kind).complete(mixed())
    check(answers)
    assert [answer.token_ids for answer in answers] == alone_of(kind)


@pytest.mark.parametrize("kind", FAMILIES)
def test_steps_that_run_ahead_give_the_tokens_of_plain_steps(kind: str, endless: EngineOf) -> None:
    engine = endless(kind)
    capture = CpuCapture()
    inference = gpu_inference(engine.loaded, capture=capture)
    batch = [asked(constraint, GREEDY) for constraint in (JSON, None, DATE)]
    expected = [answer.token_ids for answer in engine.complete(batch)]
    assert [answer.token_ids for answer in complete_with(inference, batch)] == expected
    assert capture.replays > 0


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_token_that_needs_no_mask_is_the_token_of_the_mask(
    kind: str, endless: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = endless(kind)
    constraints = (Constraint("regex", r"(.|\n){1,60}"), JSON, None, DATE)
    batch = [asked(constraint, GREEDY) for constraint in constraints]
    agrees_on = Guide.agrees_on
    answers = []

    def note(self: Guide, token: int) -> bool:
        answers.append(agrees_on(self, token))
        return answers[-1]

    monkeypatch.setattr(Guide, "agrees_on", note)
    found = [answer.token_ids for answer in engine.complete(batch)]
    assert set(answers) == {False, True}
    monkeypatch.setattr(Guide, "agrees_on", lambda self, token: False)
    assert [answer.token_ids for answer in engine.complete(batch)] == found


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_reply_begins_with_the_space_of_its_chat_format(kind: str, endless: EngineOf) -> None:
    engine = endless(kind)
    (answer,) = engine.complete([asked(DATE, GREEDY)])
    tokenizer = engine.loaded.family.tokenizer
    token = getattr(tokenizer, "convert_ids_to_tokens")(answer.token_ids[0])  # noqa: B009  # not in the protocol
    assert token[0] in "▁Ġ"


@pytest.mark.parametrize("kind", FAMILIES)
def test_replies_that_give_way_go_on_where_their_grammar_was(
    kind: str, endless: EngineOf, alone_of: AloneOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, expected = endless(kind), alone_of(kind)
    choose_tokens = Scores.choose_tokens
    calls = 0

    def fail_at_times(self: Scores, rows: Sequence[BatchRow]) -> None:
        nonlocal calls
        calls += 1
        if calls in (4, 9, 15):
            raise torch.OutOfMemoryError("CUDA out of memory")
        choose_tokens(self, rows)

    monkeypatch.setattr(Scores, "choose_tokens", fail_at_times)
    outcomes = serve_all(engine, mixed(), slots=4)
    assert tokens_of(outcomes) == expected
    assert calls > 15


def test_a_cut_reply_says_so(endless: EngineOf) -> None:
    (answer,) = endless("idefics2").complete([asked(JSON, replace(GREEDY, max_new_tokens=5))])
    assert (answer.finish, answer.new_tokens) == ("length", 5)


def test_a_constraint_that_cannot_be_compiled_is_an_error_of_its_own_request(
    endless: EngineOf,
) -> None:
    engine = endless("idefics2")
    with pytest.raises(UsageError, match="uniqueItems"):
        engine.complete([asked(Constraint("schema", '{"uniqueItems": true}'), GREEDY)])
    with pytest.raises(UsageError, match="pattern of the answer cannot be used"):
        engine.complete([asked(Constraint("regex", "("), GREEDY)])


def test_a_constraint_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(JSON)) == JSON


def test_a_mask_is_on_the_device_of_the_logits(endless: EngineOf) -> None:
    engine = endless("idefics2")
    grammars = Grammars(engine.loaded.family, engine.loaded.vocabulary)
    guides = [grammars.start(DATE, "chat") for _ in range(2)]
    here = refused_tokens(guides, engine.loaded.vocabulary, torch.device("cpu"))
    assert here.shape == (2, engine.loaded.vocabulary)
    assert 0 < int((~here).sum()) < here.numel()
    other = torch.device("meta")
    assert refused_tokens(guides, engine.loaded.vocabulary, other).device == other
