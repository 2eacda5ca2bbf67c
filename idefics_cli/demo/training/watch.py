"""How well a model in training answers about held-out pictures: quick, teacher-forced."""

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
"""The rows of a tally."""

_BATCH = 48


@torch.no_grad()
def watch(
    model: nn.Module, encoder: Encoder, pictures: Pictures, indices: Sequence[int], *, seed: int
) -> Tensor:
    """Count the answers that are right to the last token, given the right ones before.

    Args:
        model: Is left in training mode.
        encoder: For the conversations.
        pictures: A split that training does not draw from.
        indices: Which of them; about every third is also shown with another.
        seed: Of the questions.

    Returns:
        (`WATCHED`, 2) int64: how many are right, how many were asked.
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
                # Position t predicts token t + 1.
                hit = all(is_right[row][answer.start - 1 : answer.stop - 1])
                tally[WATCHED.index(answer.task)] += torch.tensor([int(hit), 1])
    model.train()
    return tally


def share_right(tally: Tensor) -> float:
    """Return the share of all questions of *tally* that were answered right."""
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
