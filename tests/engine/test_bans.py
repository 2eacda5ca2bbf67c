"""Banned words are in no reply, as with `bad_words_ids` of transformers, and change no other."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from transformers import NoBadWordsLogitsProcessor

from idefics_cli.core.errors import PromptError
from idefics_cli.core.types import Constraint, Sampling
from idefics_cli.engine.local.decode.bans import find_completing
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.special_tokens import find_ban_ids
from tests.support.prompts import ask, complete_with
from tests.support.recording import CpuCapture, gpu_inference

EngineOf = Callable[[str], LocalEngine]
FAMILIES = ("idefics", "idefics2", "idefics3", "smolvlm2")
GREEDY = Sampling(max_new_tokens=20)
WAYS = (
    GREEDY,
    replace(GREEDY, temperature=1.0, seed=3),
    replace(GREEDY, repetition_penalty=1.3),
)


def asked(sampling: Sampling, banned: Sequence[str] = (), text: str = "Why?") -> Prepared:
    prepared = ask(text, sampling)
    return replace(prepared, request=replace(prepared.request, banned=tuple(banned)))


def words_of(engine: LocalEngine, ids: Sequence[int]) -> list[str]:
    """Return words of one token and of two that a reply of *ids* holds."""
    tokenizer, found = engine.loaded.family.tokenizer, list[str]()
    for count in (2, 3, 1):
        for start in range(len(ids) - count):
            part = tuple(ids[start : start + count])
            text = tokenizer.decode(
                part, skip_special_tokens=True, clean_up_tokenization_spaces=False
            ).strip()
            if text and part in find_ban_ids(tokenizer, [text], ()):
                found.append(text)
                break
    return found


def find_words(engine: LocalEngine, way: Sampling) -> tuple[str, list[str]]:
    """Return a question, and words that the reply to it holds: replies may be bytes only."""
    for number in range(20):
        text = f"Tell me story {number}."
        (reply,) = engine.complete([asked(way, text=text)])
        if words := words_of(engine, reply.token_ids):
            return text, words
    raise AssertionError("no reply has a word")


def holds(ids: Sequence[int], ban: Sequence[int]) -> bool:
    return any(tuple(ids[at : at + len(ban)]) == tuple(ban) for at in range(len(ids)))


@pytest.mark.parametrize("seed", range(20))
def test_the_refused_tokens_are_those_of_the_library(seed: int) -> None:
    chance = random.Random(seed)
    bans = [chance.choices(range(5), k=chance.randint(1, 4)) for _ in range(chance.randint(1, 6))]
    ids = chance.choices(range(5), k=chance.randint(1, 12))
    processor = NoBadWordsLogitsProcessor(bad_words_ids=bans, eos_token_id=torch.tensor([9]))
    scores = processor(torch.tensor([ids]), torch.zeros(1, 10))
    refused = torch.isneginf(scores[0]).nonzero().flatten().tolist()
    longest = max(map(len, bans))
    assert sorted(find_completing(bans, ids)) == refused
    assert sorted(find_completing(bans, ids[-longest:])) == refused


@pytest.mark.parametrize("way", WAYS, ids=("greedy", "sampled", "penalized"))
@pytest.mark.parametrize("kind", FAMILIES)
def test_no_reply_holds_a_banned_word_and_free_replies_stay(
    kind: str, way: Sampling, endless: EngineOf
) -> None:
    engine = endless(kind)
    text, words = find_words(engine, way)
    (free,) = engine.complete([asked(way, text=text)])
    short = replace(way, max_new_tokens=7)
    batch = [asked(way, text=text), asked(way, words, text), asked(short, words[-1:], text)]
    answers = engine.complete(batch)
    assert answers[0].token_ids == free.token_ids
    assert answers[1].token_ids != free.token_ids
    for answer, banned in zip(answers[1:], (words, words[-1:]), strict=True):
        for ban in find_ban_ids(engine.loaded.family.tokenizer, banned, ()):
            assert not holds(answer.token_ids, ban)
    alone = [engine.complete([each])[0].token_ids for each in batch]
    assert [answer.token_ids for answer in answers] == alone


@pytest.mark.parametrize("kind", FAMILIES)
def test_steps_that_run_ahead_give_the_tokens_of_plain_steps(kind: str, endless: EngineOf) -> None:
    engine, capture = endless(kind), CpuCapture()
    text, words = find_words(engine, GREEDY)
    batch = [
        asked(GREEDY, words, text),
        asked(GREEDY, text=text),
        asked(GREEDY, words[:1], text),
    ]
    expected = [answer.token_ids for answer in engine.complete(batch)]
    inference = gpu_inference(engine.loaded, capture=capture)
    assert [answer.token_ids for answer in complete_with(inference, batch)] == expected
    assert capture.replays > 0


def test_a_schema_and_banned_words_hold_together(endless: EngineOf) -> None:
    prepared = asked(GREEDY, ["7", "3"])
    request = replace(prepared.request, constraint=Constraint("regex", "[0-9]{9}"))
    beside = asked(GREEDY, ["a"])
    engine = endless("smolvlm2")
    answer, free = engine.complete([replace(prepared, request=request), beside])
    assert len(answer.text) == 9
    assert free.token_ids == engine.complete([beside])[0].token_ids
    assert not {"7", "3"} & set(answer.text)


def test_the_end_of_an_answer_cannot_be_banned(endless: EngineOf) -> None:
    engine = endless("idefics2")
    stop_ids = engine.loaded.family.stop_ids
    with pytest.raises(PromptError, match=r"`<end_of_utterance>` ends an answer"):
        find_ban_ids(engine.loaded.family.tokenizer, ["<end_of_utterance>"], stop_ids)
