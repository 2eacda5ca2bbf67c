"""Watches, which measure during training how well the model answers.

A watch asks about pictures that training does not use. For each token of an answer the model gets
the right tokens before it ("teacher forcing").
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from idefics_cli.demo.conversations import PAIR_TASKS, pair_conversation, single_conversation
from idefics_cli.demo.questions import TASKS
from idefics_cli.demo.training.dataset import Pictures, make_batch
from idefics_cli.demo.training.encoding import Encoder, LabelledConversation

WATCHED = (*TASKS, "digit", "word", "follow_up", "second_follow_up", *PAIR_TASKS)
"""The tasks that a watch counts, in the order of the rows of its tally."""

_BATCH = 48


@torch.no_grad()
def watch(
    model: nn.Module, encoder: Encoder, pictures: Pictures, indices: Sequence[int], *, seed: int
) -> Tensor:
    """Count the answers of which the model predicts every token.

    Args:
        model: The model. Afterwards it is in training mode.
        encoder: Turns conversations into token ids.
        pictures: Pictures of a split that training does not use.
        indices: The pictures to ask about. A third of them is also shown with another picture.
        seed: Seed of the questions.

    Returns:
        Number of right answers and number of questions for each of `WATCHED` (tasks, 2), int64.
    """
    model.eval()
    device = next(model.parameters()).device
    tally = torch.zeros(len(WATCHED), 2, dtype=torch.long)
    for conversations, groups in _batches(pictures, indices, random.Random(seed)):
        batch = make_batch(pictures, encoder, conversations, groups)
        tokens = batch.tokens
        logits = model(
            input_ids=tokens.input_ids.to(device),
            attention_mask=tokens.attention_mask.to(device),
            pixel_values=batch.pixel_values.to(device),
            pixel_attention_mask=batch.pixel_mask.to(device),
            use_cache=False,
        ).logits
        is_right = (logits[:, :-1].argmax(-1).cpu() == tokens.input_ids[:, 1:]).tolist()
        for row, answers in enumerate(batch.answers):
            for answer in answers:
                # The logits at position t predict the token at t + 1.
                hit = all(is_right[row][answer.start - 1 : answer.stop - 1])
                tally[WATCHED.index(answer.task)] += torch.tensor([int(hit), 1])
    model.train()
    return tally


def share_right(tally: Tensor) -> float:
    """Return the share of right answers in *tally*."""
    right, asked = (int(count) for count in tally.sum(0))
    return right / max(1, asked)


def _batches(
    pictures: Pictures, indices: Sequence[int], rng: random.Random
) -> Iterator[tuple[list[LabelledConversation], list[list[int]]]]:
    jobs: list[tuple[LabelledConversation, list[int]]] = []
    for index in indices:
        turns = single_conversation(pictures.scene(index), rng, turns=6)
        jobs.append((LabelledConversation(tuple(turns), 1), [index]))
    for index in indices[: len(indices) // 3]:
        group = [index, pictures.partner(index, rng)]
        scenes = (pictures.scene(group[0]), pictures.scene(group[1]))
        turns = pair_conversation(scenes, rng, turns=3)
        jobs.append((LabelledConversation(tuple(turns), 2), group))
    for start in range(0, len(jobs), _BATCH):
        conversations, groups = zip(*jobs[start : start + _BATCH], strict=True)
        yield list(conversations), list(groups)
