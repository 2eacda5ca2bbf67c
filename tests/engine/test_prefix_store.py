"""The store of conversations finds what a search through all of them finds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from transformers import DynamicCache

from idefics_cli.engine.local.prompt.prefix import PrefixStore
from idefics_cli.models.families.base import PrefixKey
from idefics_cli.models.families.kv_cache import cache_bytes, growing_cache

_ALPHABET: tuple[PrefixKey, ...] = (0, 1, 300, bytes(31) + b"\1", bytes(32), b"\xff" * 32)


def _states(count: int) -> DynamicCache:
    cache = growing_cache()
    numbers = torch.arange(count, dtype=torch.float32).view(1, 1, count, 1)
    cache.update(numbers, -numbers, 0)
    return cache


@cache
def _bytes_of(count: int) -> int:
    return cache_bytes(_states(count))


def _shared(one: Sequence[PrefixKey], other: Sequence[PrefixKey]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("seed", range(4))
def test_any_walk_finds_the_longest_shared_beginning(seed: int) -> None:
    chance = random.Random(seed)
    store, kept = PrefixStore(10**9), list[list[PrefixKey]]()
    for _ in range(400):
        keys = chance.choices(_ALPHABET[: chance.randint(1, 6)], k=chance.randint(1, 7))
        longest = max((_shared(each, keys) for each in kept), default=0)
        assert store.copy_prefix(keys).get_seq_length() == longest
        if chance.random() < 0.3:
            usable = keys[:-1]
            longest = max((_shared(each, usable) for each in kept), default=0)
            before = len(store)
            cache, count = store.take_prefix(keys)
            assert count == cache.get_seq_length() == longest
            if len(store) < before:
                kept.remove(usable[:count])
        elif not any(each[: len(keys)] == keys for each in kept):
            store.keep_prefix(keys, _states(len(keys)))
            kept = [*(each for each in kept if keys[: len(each)] != each), keys]
        else:
            store.keep_prefix(keys, _states(len(keys)))
        assert len(store) == len(kept)
        assert store.held_bytes == sum(_bytes_of(len(each)) for each in kept)


def test_the_least_recently_used_conversations_are_dropped_first() -> None:
    size = cache_bytes(_states(4))
    store = PrefixStore(3 * size)
    for first in range(3):
        store.keep_prefix([first, 7, 7, 7], _states(4))
    assert store.take_prefix([0, 7, 9])[1] == 2  # the first one is used now
    store.keep_prefix([3, 7, 7, 7], _states(4))
    found = [store.copy_prefix([first, 7]).get_seq_length() for first in range(4)]
    assert found == [2, 0, 2, 2]
    assert store.held_bytes == 3 * size

    store.shrink_to(0)
    assert (len(store), store.held_bytes) == (1, size)
    assert store.copy_prefix([3, 7, 7]).get_seq_length() == 3
    store.shrink_to(0, at_least=0)
    assert (len(store), store.held_bytes) == (0, 0)
