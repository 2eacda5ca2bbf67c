"""Replies end before their stop texts, and change no other reply."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.decode.detokenize import Detokenizer
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Prepared
from tests.support.prompts import ask, complete_with
from tests.support.recording import CpuCapture, gpu_inference

EngineOf = Callable[[str], LocalEngine]
FREE = Sampling(max_new_tokens=24)


class CharacterTokenizer:
    """A tokenizer whose tokens are characters."""

    def decode(self, token_ids: object, **_: bool) -> str:
        assert isinstance(token_ids, list)
        return "".join(map(chr, token_ids))


def stopped(sampling: Sampling, *stops: str) -> Prepared:
    return ask(sampling=replace(sampling, stop=stops))


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("one. two. three", ("two",), "one."),
        ("one\n\ntwo", ("\n",), "one"),
        ("\n one", ("\n",), "one"),
        ("aaab", ("aab",), "a"),
        ("abcabd", ("abd", "x"), "abc"),
        ("abcX", ("abcX", "bc"), "a"),
        ("one tw", ("two",), "one tw"),
        ("one ", ("two",), "one"),
        ("stop", ("stop",), ""),
    ],
)
def test_a_reply_ends_before_the_stop_that_is_complete_first(
    text: str, stops: tuple[str, ...], kept: str
) -> None:
    tokens = [*map(ord, text)]
    stream = Detokenizer(CharacterTokenizer(), strip=True, stops=stops)
    ends = range(1, len(tokens) + 1)
    pieces = [stream.feed(tokens[:n], last=n == len(tokens)) for n in ends]
    whole = Detokenizer(CharacterTokenizer(), strip=True, stops=stops)

    assert "".join(pieces) == whole.whole(tokens) == kept
    assert stream.has_stopped == whole.has_stopped == any(stop in text.lstrip() for stop in stops)


@pytest.mark.parametrize("strip", [True, False])
def test_pieces_join_to_the_whole_for_random_texts_and_stops(strip: bool) -> None:
    chance = random.Random(1)
    for _ in range(500):
        text = "".join(chance.choices("ab \n", k=12))
        stops = tuple("".join(chance.choices("ab \n", k=chance.randint(1, 4))) for _ in range(3))
        tokens = [*map(ord, text)]
        stream = Detokenizer(CharacterTokenizer(), strip=strip, stops=stops)
        joined = "".join(stream.feed(tokens[:n], last=n == 12) for n in range(1, 13))
        assert joined == Detokenizer(CharacterTokenizer(), strip=strip, stops=stops).whole(tokens)
        assert not any(stop in joined for stop in stops)
        assert (text.strip() if strip else text).startswith(joined)


@pytest.mark.parametrize("kind", ["idefics2", "idefics3", "smolvlm2"])
def test_a_batch_with_stops_leaves_other_replies_as_they_are(kind: str, endless: EngineOf) -> None:
    engine = endless(kind)
    sampled = replace(FREE, temperature=1.0, seed=3)
    free, drawn = engine.complete([ask(sampling=FREE), ask(sampling=sampled)])
    stop, other = free.text[6:9], drawn.text[5:7]
    batch = [stopped(FREE, stop), ask(sampling=FREE), stopped(sampled, "\0", other)]
    first, second, third = engine.complete(batch)

    assert first.text == free.text[: free.text.index(stop)].rstrip()
    assert third.text == drawn.text[: drawn.text.index(other)].rstrip()
    assert (first.finish, second.finish, third.finish) == ("stop", "length", "stop")
    assert second.token_ids == free.token_ids
    assert free.token_ids[: first.new_tokens] == first.token_ids
    assert 0 < first.new_tokens < free.new_tokens
    chunks = [*engine.stream(batch[0])]
    assert "".join(chunk.text for chunk in chunks) == first.text
    assert (chunks[-1].finish, chunks[-1].new_tokens) == ("stop", first.new_tokens)


def test_steps_that_run_ahead_stop_at_the_same_token(endless: EngineOf) -> None:
    engine, capture = endless("idefics2"), CpuCapture()
    inference = gpu_inference(engine.loaded, capture=capture)
    stop = engine.complete([ask(sampling=FREE)])[0].text[6:9]
    batch = [stopped(FREE, stop), ask(sampling=FREE)]
    expected = [(answer.text, answer.token_ids) for answer in engine.complete(batch)]
    assert [(a.text, a.token_ids) for a in complete_with(inference, batch)] == expected
    assert capture.replays > 0
