"""The order of examples in an epoch, and the batches of its steps."""

from __future__ import annotations

import random
from collections.abc import Sequence

from idefics_cli.models.families.picture import PictureShape
from idefics_cli.training.examples import TrainingExample

# Rows are sorted by length only within the rows of this many steps. So each epoch of a small data
# set brings other rows together.
_WINDOW_STEPS = 4
_BUCKET_TOKENS = 32


def epoch_steps(
    examples: Sequence[TrainingExample], *, rows: int, seed: int, epoch: int
) -> list[list[int]]:
    """Return the indices of *examples* for each step of an epoch.

    Each example is in one step. The examples of a step have similar lengths, and pictures of
    similar shapes, so that padding is short. Its longest examples come last. The result depends
    on nothing but the arguments.

    Args:
        examples: All examples to train on.
        rows: Number of examples of a step. Only the last step of an epoch may have fewer.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
    """
    rng = random.Random(f"order {seed} {epoch}")
    order = list(range(len(examples)))
    rng.shuffle(order)
    # The rows that do not fill a step are taken out before sorting. If they were taken out
    # afterwards, they would always be the longest.
    cut = len(order) - len(order) % rows
    rest, order = order[cut:], order[:cut]
    shapes = _number_shapes(examples)

    def similarity(index: int) -> tuple[int, int]:
        return len(examples[index].tokens.token_ids) // _BUCKET_TOKENS, shapes[index]

    steps = []
    for start in range(0, cut, rows * _WINDOW_STEPS):
        window = sorted(order[start : start + rows * _WINDOW_STEPS], key=similarity)
        found = [window[at : at + rows] for at in range(0, len(window), rows)]
        rng.shuffle(found)
        steps += found
    return [*steps, sorted(rest, key=similarity)] if rest else steps


def _number_shapes(examples: Sequence[TrainingExample]) -> list[int]:
    """Return a number for the shapes of the pictures of each example; equal shapes, one number."""
    known: dict[tuple[PictureShape, ...], int] = {}
    return [
        known.setdefault(tuple(picture.shape for picture in example.pictures), len(known))
        for example in examples
    ]
