"""The beginning that the prompts of a batch share is computed once, and changes no token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from idefics_cli.core.types import Completion, Sampling
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.prompt.shared import count_shared
from idefics_cli.engine.protocol import Prepared
from tests.support import tiny
from tests.support.prompts import Turns, as_request, raw_prompt, reopen
from tests.support.serving import serve_all, tokens_of

EngineOf = Callable[[str], LocalEngine]
GREEDY = Sampling(max_new_tokens=9)
MIXED = (GREEDY, replace(GREEDY, temperature=1.0, seed=5), GREEDY)
EXAMPLES: Turns = [
    ("user", [0], "What is in this image? Tell me all that you see, from left to right."),
    ("assistant", [], "A red circle above a blue square, on a yellow background."),
    ("user", [1], "What is in this image? Tell me all that you see, from left to right."),
    ("assistant", [], "Two cats on a green sofa, one of them asleep, and a lamp beside it."),
]


def batch_of(
    engine: LocalEngine, kind: str, samplings: Sequence[Sampling] = MIXED
) -> list[Prepared]:
    """Return requests of several lengths with *samplings* that begin with the same examples."""
    questions = ["What?", "What is in this image, and where is it?", "Describe it."]
    if kind in tiny.CHATTING:
        return [
            as_request(engine, [*EXAMPLES, ("user", [2 + number % 2], text)], sampling=sampling)
            for number, (text, sampling) in enumerate(zip(questions, samplings, strict=True))
        ]
    start = "<image>This is a red circle above a blue square.\n" * 2
    made = [
        raw_prompt(engine, f"{start}<image>{text}", [0, 1, 2 + number])
        for number, text in enumerate(questions)
    ]
    return [
        replace(each, request=replace(each.request, sampling=sampling))
        for each, sampling in zip(made, samplings, strict=True)
    ]


@contextmanager
def counted(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of prompt tokens of each forward, of all rows together."""
    # Any: the arguments are passed on.
    family, tokens = engine.loaded.family, list[int]()
    text_inputs = family.text_inputs

    def counting(*arguments: Any) -> object:
        inputs, start, end = arguments[1], arguments[3], arguments[4]
        tokens.append(len(inputs["input_ids"]) * (end - start))
        return text_inputs(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(family, "text_inputs", counting)
        yield tokens


def ids_of(answers: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


@pytest.mark.parametrize("uses_slots", [True, False])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_batch_with_shared_examples_equals_each_request_alone(
    kind: str,
    uses_slots: bool,
    endless: EngineOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make(loaded: object) -> Inference:
        return Inference(endless(kind).loaded, stop_ids=(), uses_slots=uses_slots)

    with reopen(endless(kind), make) as engine:
        batch = batch_of(engine, kind)
        family = engine.loaded.family
        rows = [
            family.prefix_keys(
                family.encode([each.request], [each.pictures])["input_ids"][0].tolist(),
                each.pictures,
            )
            for each in batch
        ]
        shared = count_shared(rows)
        assert shared > 32
        with counted(engine, monkeypatch) as tokens:
            together = engine.complete(batch)
        assert sum(tokens) == shared + len(batch) * (max(map(len, rows)) - shared)
        # The next batch finds the states of the one before.
        with counted(engine, monkeypatch) as tokens:
            again = engine.complete(batch[::-1])
        assert sum(tokens) == len(batch) * (max(map(len, rows)) - shared)
    with reopen(endless(kind), make) as engine:
        alone = [engine.complete([each])[0] for each in batch]
    assert ids_of(together) == ids_of(alone)
    assert ids_of(again) == ids_of(alone)[::-1]
    assert [each.prompt_tokens for each in together] == [each.prompt_tokens for each in alone]


@pytest.mark.parametrize("kind", ["idefics", "idefics2", "smolvlm2"])
def test_a_session_of_few_slots_gives_the_same_replies(kind: str, endless: EngineOf) -> None:
    engine = endless(kind)
    batch = batch_of(engine, kind, [GREEDY] * 3) * 3
    expected = [engine.complete([each])[0].token_ids for each in batch]
    for slots in (1, 2, 3):
        assert tokens_of(serve_all(engine, batch, slots=slots)) == expected


def test_a_common_beginning_is_counted_without_the_last_token() -> None:
    assert count_shared([[1, 2, 3], [1, 2, 4]]) == 2
    assert count_shared([[1, 2, 3], [1, 2, 3]]) == 2
    assert count_shared([[1, 2, 3], [1, 2]]) == 1
    assert count_shared([[1], [1, 2]]) == 0
    assert count_shared([[2, 1], [1, 2]]) == 0
    assert count_shared([[b"a", 1, 2], [b"b", 1, 2]]) == 0
