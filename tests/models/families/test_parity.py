"""Every family has the ids, pixels and greedy tokens of transformers called directly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Prepared
from tests.support import tiny
from tests.support.encoded import assert_same_inputs, encode
from tests.support.prompts import (
    CONVERSATIONS,
    NEW_TOKENS,
    Turns,
    as_request,
    open_engine,
    picture,
    raw_prompt,
)
from tests.support.reference import Reference, Turn, load_reference

EngineOf = Callable[[str], LocalEngine]
ReferenceOf = Callable[[str], Reference]


@pytest.fixture(scope="module")
def engine_of(checkpoint: Callable[[str], Path]) -> Iterator[Callable[[str], LocalEngine]]:
    made: dict[str, LocalEngine] = {}

    def get(kind: str) -> LocalEngine:
        if kind not in made:
            made[kind] = open_engine(checkpoint(kind), kind)
        return made[kind]

    yield get
    for engine in made.values():
        engine.close()


@pytest.fixture(scope="module")
def reference_of(checkpoint: Callable[[str], Path]) -> Callable[[str], Reference]:
    return cache(lambda kind: load_reference(checkpoint(kind), kind))


def with_pictures(turns: Turns) -> list[Turn]:
    return [(role, [picture(i) for i in images], text) for role, images, text in turns]


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_conversation_gives_the_librarys_inputs_and_greedy_tokens(
    name: str, kind: str, engine_of: EngineOf, reference_of: ReferenceOf
) -> None:
    engine, reference = engine_of(kind), reference_of(kind)
    turns = CONVERSATIONS[name]
    theirs = reference.inputs(with_pictures(turns))
    assert_same_inputs(encode(engine, as_request(engine, turns)), theirs)
    (answer,) = engine.complete([as_request(engine, turns)])
    assert list(answer.token_ids) == reference.generate(theirs, max_new_tokens=NEW_TOKENS)
    assert answer.prompt_tokens == theirs["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("text", "images"),
    [("<image>In this image,", [0]), ("This is <image> and this <image>", [1, 2]), ("Once", [])],
)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_raw_prompt_gives_the_librarys_inputs_and_greedy_tokens(
    text: str, images: list[int], kind: str, engine_of: EngineOf, reference_of: ReferenceOf
) -> None:
    engine, reference = engine_of(kind), reference_of(kind)
    theirs = reference.raw_inputs(text, [picture(i) for i in images])
    assert_same_inputs(encode(engine, raw_prompt(engine, text, images)), theirs)
    (answer,) = engine.complete([raw_prompt(engine, text, images)])
    assert list(answer.token_ids) == reference.generate(theirs, max_new_tokens=NEW_TOKENS)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_any_raw_prompt_has_the_librarys_tokens(
    kind: str, seed: int, engine_of: EngineOf, reference_of: ReferenceOf
) -> None:
    chance = random.Random(seed)
    pieces = ("<image>", "<image>", "<image>", " ", "  ", "\n", "a", "é", "<", ".", "The dog", "漢")
    text = "".join(chance.choices(pieces, k=chance.randint(1, 12))) + "<image>."
    images = [i % 3 for i in range(text.count("<image>"))]
    engine, prompt = engine_of(kind), raw_prompt(engine_of(kind), text, images)
    ours = engine.loaded.family.encode([prompt.request], [prompt.pictures])["input_ids"]
    theirs = reference_of(kind).raw_inputs(text, [picture(i) for i in images])["input_ids"]
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_batch_of_mixed_prompts_equals_each_alone(kind: str, engine_of: EngineOf) -> None:
    engine = engine_of(kind)
    batch = prompts(engine, kind)
    alone = [engine.complete([prepared])[0] for prepared in batch]
    together = engine.complete(batch)
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.prompt_tokens for a in together] == [a.prompt_tokens for a in alone]
    backwards = engine.complete(batch[::-1])
    assert [a.token_ids for a in backwards] == [a.token_ids for a in alone[::-1]]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_images_change_the_answer(kind: str, engine_of: EngineOf) -> None:
    engine = engine_of(kind)
    answers = [
        engine.complete([raw_prompt(engine, "<image>In this image,", [i])])[0] for i in range(3)
    ]
    assert len({answer.token_ids for answer in answers}) > 1


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_streamed_pieces_join_to_the_whole(kind: str, engine_of: EngineOf) -> None:
    engine = engine_of(kind)
    for prepared in prompts(engine, kind):
        (whole,) = engine.complete([prepared])
        chunks = list(engine.stream(prepared))
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert (chunks[-1].finish, chunks[-1].new_tokens) == (whole.finish, whole.new_tokens)
        assert chunks[-1].prompt_tokens == whole.prompt_tokens
        assert chunks[-1].prefill_seconds > 0
        assert chunks[-1].decode_seconds > 0


def prompts(engine: LocalEngine, kind: str) -> list[Prepared]:
    if kind.endswith("base"):
        return [
            raw_prompt(engine, "<image>In this image,", [0]),
            raw_prompt(engine, "A longer text about <image>", [1]),
        ]
    return [as_request(engine, turns) for turns in CONVERSATIONS.values()]


@pytest.mark.parametrize("kind", ["idefics2-split", "idefics3", "smolvlm"])
def test_a_picture_without_its_tiles_is_that_of_a_model_that_does_not_split(
    kind: str, engine_of: EngineOf, checkpoint: Callable[[str], Path]
) -> None:
    def answer(engine: LocalEngine) -> tuple[int, tuple[int, ...]]:
        prepared = as_request(engine, [("user", [0], "What is it?")])
        tiles.append(len(prepared.pictures[0].tile_sizes))
        pictures = tuple(each.without_tiles() for each in prepared.pictures)
        (completion,) = engine.complete([replace(prepared, pictures=pictures)])
        return completion.prompt_tokens, completion.token_ids

    tiles: list[int] = []
    splitting = engine_of(kind)
    spec = replace(splitting.spec, splitting=False)
    with LocalEngine(spec) as whole:
        assert answer(splitting) == answer(whole)
        # The same holds while the engine remembers the picture with all its tiles.
        splitting.complete([as_request(splitting, [("user", [0], "What is it?")])])
        assert answer(splitting) == answer(whole)
    assert (tiles[0] > 1, tiles[1]) == (True, 1)
