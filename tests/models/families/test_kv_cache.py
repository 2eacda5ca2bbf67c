"""A growing cache holds the states of transformers' own after any updates and crops."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import DynamicCache

from idefics_cli.models.families.kv_cache import extend, growing_cache, keep_first

LAYERS, HEADS, WIDTH = 2, 3, 4


def assert_equal(ours: DynamicCache, theirs: DynamicCache) -> None:
    assert ours.get_seq_length() == theirs.get_seq_length()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_changes_gives_the_librarys_states(seed: int, inference: bool) -> None:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    ours, theirs, batch = growing_cache(spare_tokens=5), DynamicCache(), 2
    with torch.inference_mode(inference):
        for _ in range(60):
            step = chance.choice(["one", "one", "one", "one", "many", "crop", "rows", "repeat"])
            length = theirs.get_seq_length()
            if step in ("one", "many"):
                new = torch.randn(2, batch, HEADS, 1 if step == "one" else 4, WIDTH)
                for index in range(LAYERS):
                    given = [cache.update(*new, index) for cache in (ours, theirs)]
                    assert all(map(torch.equal, *given))
            elif step == "crop" and length > 1:
                count = chance.randrange(1, length)
                ours.crop(-count)
                theirs.crop(-count)
            elif step == "rows" and length and batch > 1:
                for cache in (ours, theirs):
                    cache.batch_select_indices(torch.tensor([batch - 1]))
                batch = 1
            elif step == "repeat" and length and batch < 3:
                for cache in (ours, theirs):
                    cache.batch_repeat_interleave(2)
                batch *= 2
            if theirs.get_seq_length():
                assert_equal(ours, theirs)


@pytest.mark.parametrize("spare", [0, 5, 100])
def test_states_that_the_caller_writes_follow_those_before(spare: int) -> None:
    ours, theirs = growing_cache(spare_tokens=spare), DynamicCache()
    empty = torch.empty(1, HEADS, 0, WIDTH)
    torch.manual_seed(0)
    for count in (3, 1, 8, 2):
        new = torch.randn(LAYERS, 2, 1, HEADS, count, WIDTH)
        held = theirs.get_seq_length()
        buffers = extend(ours, count, layers=LAYERS, empty=empty)
        for index, layer in enumerate(buffers):
            theirs.update(*new[index], index)
            assert layer.keys.is_contiguous()
            layer.keys[:, :, held : held + count] = new[index, 0]
            layer.values[:, :, held : held + count] = new[index, 1]
        assert_equal(ours, theirs)
        if count == 8:
            keep_first(ours, 6)
            keep_first(theirs, 6)
    # A usual update goes on.
    more = torch.randn(2, 1, HEADS, 4, WIDTH)
    for index in range(LAYERS):
        ours.update(*more, index)
        theirs.update(*more, index)
    assert_equal(ours, theirs)


def test_a_new_token_is_written_without_copying_the_others() -> None:
    cache = growing_cache()
    first = torch.randn(1, HEADS, 7, WIDTH)
    keys, _ = cache.update(first, first, 0)
    for _ in range(20):
        more, _ = cache.update(first[:, :, :1], first[:, :, :1], 0)
        assert more.data_ptr() == keys.data_ptr()
    cache.crop(-25)
    more, _ = cache.update(-first, -first, 0)
    assert more.data_ptr() == keys.data_ptr()
    assert torch.equal(more[:, :, 2:], -first)


def test_states_of_inference_mode_can_grow_outside_of_it() -> None:
    states = torch.randn(1, HEADS, 3, WIDTH)
    cache = growing_cache()
    with torch.inference_mode():
        cache.update(states, states, 0)
    with torch.no_grad():
        keys, _ = cache.update(states.clone(), states.clone(), 0)
    assert torch.equal(keys, torch.cat([states, states], 2))


def test_new_states_are_appended_to_states_that_were_replaced() -> None:
    torch.manual_seed(0)
    first, new = torch.randn(2, 2, HEADS, 4, WIDTH), torch.randn(2, 2, HEADS, 1, WIDTH)
    cache = growing_cache()
    cache.update(*first, 0)
    layer = cache.layers[0]
    layer.keys, layer.values = layer.values, layer.keys
    keys, values = cache.update(*new, 0)
    assert torch.equal(keys, torch.cat([first[1], new[0]], 2))
    assert torch.equal(values, torch.cat([first[0], new[1]], 2))
    # A view of fewer rows starts at the address of the buffer.
    layer.keys, layer.values = layer.keys[:1], layer.values[:1]
    more, _ = cache.update(*new[:, :1], 0)
    assert torch.equal(more, torch.cat([keys[:1], new[0, :1]], 2))
