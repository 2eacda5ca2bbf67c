"""Detokenizing: characters of several tokens arrive whole, and pieces join to the whole text."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from idefics_cli.engine.local.decode.detokenize import Detokenizer
from idefics_cli.engine.local.engine import LocalEngine


@pytest.fixture(scope="module")
def engine(endless: Callable[[str], LocalEngine]) -> LocalEngine:
    return endless("idefics2")


class ByteTokenizer:
    """A tokenizer whose tokens are bytes; ids from 256 on are special."""

    def decode(self, token_ids: Sequence[int], **_: bool) -> str:
        return bytes(i for i in token_ids if i < 256).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["plain", "Zürich 漢字 🙂!", "  led and trailed \n\n", "", "\n"])
def test_characters_of_several_tokens_arrive_whole(text: str) -> None:
    tokens = [*text.encode(), 300]
    for strip in (True, False):
        stream = Detokenizer(ByteTokenizer(), strip=strip)
        pieces = [stream.feed(tokens[:n], last=n == len(tokens)) for n in range(1, len(tokens) + 1)]
        assert "".join(pieces) == (text.strip() if strip else text)
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("text", ["🙂😀🎉🔥💡🚀 done", "a🙂😀🎉🔥b", "鬱漢字仮名交文🙂鬱 x"])
def test_runs_of_characters_that_the_vocabulary_lacks_arrive_whole(
    text: str, engine: LocalEngine
) -> None:
    tokenizer = engine.loaded.family.tokenizer
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(tokens) > 2 * len(text)  # byte by byte
    assert Detokenizer(tokenizer, strip=True).whole(tokens) == text


@pytest.mark.parametrize("strip", [True, False])
def test_a_whole_reply_is_what_its_pieces_join_to(engine: LocalEngine, strip: bool) -> None:
    tokenizer = engine.loaded.family.tokenizer
    # Special tokens, bytes of half characters and word marks, in any order.
    ids, rng = range(len(tokenizer)), random.Random(0)
    for length in range(40):
        tokens = [rng.choice(ids) for _ in range(length)]
        stream = Detokenizer(tokenizer, strip=strip)
        pieces = [stream.feed(tokens[:n], last=n == length) for n in range(1, length + 1)]
        assert Detokenizer(tokenizer, strip=strip).whole(tokens) == "".join(pieces)


def test_a_character_that_never_completes_is_shown_as_such_at_the_end() -> None:
    tokens = list("ab🙂".encode())[:-1]
    assert Detokenizer(ByteTokenizer(), strip=True).whole(tokens) == "ab\ufffd"
