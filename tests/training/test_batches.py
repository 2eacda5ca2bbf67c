"""The steps of an epoch."""

from __future__ import annotations

import random
from itertools import chain

import pytest

from idefics_cli.core.types import GenerationRequest
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.training.batches import epoch_steps
from idefics_cli.training.examples import TrainingExample
from idefics_cli.training.labels import LabelledTokens


def example(length: int, tiles: int = 1) -> TrainingExample:
    picture = PreparedPicture(b"", (1, 1), ((14, 14),) * tiles)
    tokens = LabelledTokens([1] * length, [1] * length)
    return TrainingExample("", tokens, (picture,), (), GenerationRequest(()), "", b"")


@pytest.fixture
def examples() -> list[TrainingExample]:
    rng = random.Random(1)
    return [example(rng.randrange(20, 1000), rng.choice((1, 5))) for _ in range(203)]


def test_every_example_is_in_one_step_of_an_epoch(examples: list[TrainingExample]) -> None:
    steps = epoch_steps(examples, rows=8, seed=3, epoch=0)

    assert sorted(chain(*steps)) == list(range(203))
    assert [len(step) for step in steps] == [8] * 25 + [3]


def test_the_order_depends_on_seed_and_epoch_only(examples: list[TrainingExample]) -> None:
    steps = epoch_steps(examples, rows=8, seed=3, epoch=0)
    random.seed(99)

    assert epoch_steps(list(examples), rows=8, seed=3, epoch=0) == steps
    assert epoch_steps(examples, rows=8, seed=3, epoch=1) != steps
    assert epoch_steps(examples, rows=8, seed=4, epoch=0) != steps


def test_similar_lengths_are_together_and_the_longest_are_last(
    examples: list[TrainingExample],
) -> None:
    def padded(steps: list[list[int]]) -> int:
        lengths = [[len(examples[at].tokens.token_ids) for at in step] for step in steps]
        return sum(max(step) * len(step) for step in lengths)

    steps = epoch_steps(examples, rows=8, seed=3, epoch=0)
    order = list(chain(*steps))
    random.Random(5).shuffle(order)
    mixed = [order[at : at + 8] for at in range(0, 203, 8)]

    assert padded(steps) < 0.75 * padded(mixed)
    for step in steps:
        buckets = [len(examples[at].tokens.token_ids) // 32 for at in step]
        assert buckets == sorted(buckets)


def test_pictures_of_one_shape_are_together() -> None:
    examples = [example(100, 1 + at % 2) for at in range(64)]
    steps = epoch_steps(examples, rows=8, seed=0, epoch=0)

    kinds = [{len(examples[at].pictures[0].tile_sizes) for at in step} for step in steps]
    assert sum(len(kind) == 1 for kind in kinds) >= 5


def test_in_another_epoch_other_examples_meet(examples: list[TrainingExample]) -> None:
    def pairs(epoch: int) -> set[frozenset[int]]:
        steps = epoch_steps(examples[:96], rows=8, seed=3, epoch=epoch)
        return {frozenset((a, b)) for step in steps for a in step for b in step if a < b}

    first, second = pairs(0), pairs(1)
    assert len(first & second) < 0.6 * len(first)


def test_fewer_examples_than_rows_make_one_step_and_none_make_none() -> None:
    assert epoch_steps([example(10)] * 3, rows=8, seed=0, epoch=0) != []
    assert sorted(epoch_steps([example(10)] * 3, rows=8, seed=0, epoch=0)[0]) == [0, 1, 2]
    assert epoch_steps([], rows=8, seed=0, epoch=0) == []
