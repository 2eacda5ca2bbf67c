"""The split by the content of pictures."""

from __future__ import annotations

import hashlib
import random

from idefics_cli.core.types import Attachment, GenerationRequest
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.training.examples import TrainingExample, find_shared, split_examples
from idefics_cli.training.labels import LabelledTokens


def example(key: str, *pictures: str) -> TrainingExample:
    digests = [hashlib.sha256(name.encode()) for name in pictures]
    return TrainingExample(
        key,
        LabelledTokens([1, 2], [-100, 2]),
        tuple(PreparedPicture(b"", (1, 1), ((1, 1),)) for _ in pictures),
        tuple(Attachment(d.hexdigest(), d.hexdigest()) for d in digests),
        GenerationRequest(()),
        "",
        hashlib.sha256(key.encode()).digest(),
    )


def keys(examples: list[TrainingExample]) -> list[str]:
    return [each.key for each in examples]


def test_every_example_is_on_one_side_and_about_the_share_is_split_off() -> None:
    examples = [example(f"{i}", f"picture {i}") for i in range(1000)]
    training, validation = split_examples(examples, 0.1)

    assert 80 <= len(validation) <= 120
    assert sorted(keys(training) + keys(validation), key=int) == keys(examples)
    assert keys(training) == sorted(keys(training), key=int)


def test_examples_of_one_picture_are_on_one_side() -> None:
    examples = [example(f"{i}", f"picture {i // 3}") for i in range(300)]
    training, validation = split_examples(examples, 0.2)

    assert validation
    assert {int(k) // 3 for k in keys(training)}.isdisjoint(int(k) // 3 for k in keys(validation))


def test_examples_that_share_pictures_through_others_are_on_one_side() -> None:
    chains = [
        example(
            f"{number} {at}", *(f"{number} p{n}" for n in random.Random(at).sample((at, at + 1), 2))
        )
        for number in range(20)
        for at in range(4)
    ]
    found = set()
    for seed in range(10):
        mixed = list(chains)
        random.Random(seed).shuffle(mixed)
        training, validation = split_examples(mixed, 0.4)
        assert len(training) + len(validation) == 80
        sides = [{key.split()[0] for key in keys(side)} for side in (training, validation)]
        assert sides[0].isdisjoint(sides[1])
        found.add(frozenset(keys(validation)))
    assert len(found) == 1  # the order of examples changes nothing


def test_further_examples_move_none_to_the_other_side() -> None:
    examples = [example(f"{i}", f"picture {i}") for i in range(900)]
    _, before = split_examples(examples[:400], 0.1)
    training, after = split_examples(list(reversed(examples)), 0.1)

    assert set(keys(before)) <= set(keys(after))
    assert set(keys(training)).isdisjoint(keys(before))


def test_a_few_examples_give_one_and_very_many_give_two_hundred() -> None:
    few = [example(f"{i}", f"picture {i}") for i in range(4)]
    many = [example(f"{i}", f"picture {i}") for i in range(9000)]

    assert len(split_examples(few, 0.05)[1]) == 1
    assert len(split_examples(many, 0.05)[1]) == 200


def test_without_a_second_picture_or_a_share_nothing_is_split_off() -> None:
    same = [example(f"{i}", "picture") for i in range(9)]
    others = [example(f"{i}", f"picture {i}") for i in range(9)]

    assert split_examples(same, 0.5) == (same, [])
    assert split_examples(others, 0.0) == (others, [])


def test_a_picture_of_more_than_half_of_the_examples_is_trained_on() -> None:
    for name in "abcdefgh":
        examples = [example(f"{i}", name) for i in range(8)] + [example("other", f"not {name}")]
        training, validation = split_examples(examples, 0.5)
        assert (len(training), keys(validation)) == (8, ["other"])


def test_text_without_pictures_is_split_by_its_own_content() -> None:
    examples = [example(f"{i}") for i in range(200)]
    training, validation = split_examples(examples, 0.25)

    assert len(training) + len(validation) == 200
    assert 30 <= len(validation) <= 70


def test_examples_whose_pictures_are_learned_are_found() -> None:
    training = [example("a", "p"), example("b", "q", "r"), example("text")]
    validation = [example("c", "s"), example("d", "s", "r"), example("text"), example("e", "p")]

    assert keys(find_shared(training, validation)) == ["d", "text", "e"]
    assert find_shared([], validation) == []
