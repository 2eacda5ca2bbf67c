"""Scoring: the probabilities of whole answers after a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor
from transformers import DynamicCache

from idefics_cli.core.errors import ModelError
from idefics_cli.engine.local.prompt.prefill import Prompt
from idefics_cli.engine.local.transfer import to_device
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.kv_cache import keep_first
from idefics_cli.models.families.protocols import Model

Answer = tuple[int, ...]
"""The tokens of an answer, without an end token."""


def score_answers(
    model: Model,
    family: Family,
    prompt: Prompt,
    cache: DynamicCache,
    logits: Tensor,
    answers: Sequence[Answer],
) -> list[list[float]]:
    """Return the logarithm of the probability of each answer, its end included, for each prompt.

    Each step runs one token behind all prompts. Answers with one beginning share its steps. Their
    order has no influence.

    Args:
        model: In eval mode.
        family: The family of the model.
        prompt: B prompts.
        cache: Holds the states of the prompts; they are left as they were.
        logits: (B, V), those of the last tokens of the prompts.
        answers: Each with a token or more.

    Returns:
        B lists, each with a number for each answer.

    Raises:
        ModelError: If the logits contain NaN.
    """
    walk = _AnswerWalk(model, family, prompt, cache, [logits.float().log_softmax(-1)])
    scores = {answer: walk.score(answer) for answer in sorted(set(answers))}
    walk.go_back(0)
    found = torch.stack([scores[answer] for answer in answers], dim=1)
    if bool(found.isnan().any()):
        raise ModelError(
            "the model's numbers went out of range, so it has no answer",
            hint="try `--dtype float32`; else its weights may be damaged",
        )
    rows: list[list[float]] = found.tolist()
    return rows


@dataclass(slots=True)
class _AnswerWalk:
    """The tokens behind B prompts that *cache* holds, and the logarithms (B, V) after each.

    The first of *logs* belongs to the prompts themselves.
    """

    model: Model
    family: Family
    prompt: Prompt
    cache: DynamicCache
    logs: list[Tensor]
    path: list[int] = field(default_factory=list)

    def score(self, answer: Answer) -> Tensor:
        """Return the logarithm (B,) of the probability of *answer* and an end after it."""
        pairs = zip(self.path, answer, strict=False)
        self.go_back(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
        for token in answer[len(self.path) :]:
            self._step(token)
        said = [after[:, token] for after, token in zip(self.logs, answer, strict=False)]
        stops = to_device(sorted(self.family.stop_ids), self.logs[0].device)
        return torch.stack([*said, self.logs[-1][:, stops].logsumexp(-1)]).sum(0)

    def go_back(self, count: int) -> None:
        """Keep the first *count* tokens behind the prompts."""
        length = self.prompt.inputs["input_ids"].shape[1]
        keep_first(self.cache, length + count)
        del self.path[count:], self.logs[count + 1 :]

    def _step(self, token: int) -> None:
        inputs, depth = self.prompt.inputs, len(self.path)
        positions = inputs["attention_mask"].long().sum(-1, keepdim=True)
        mask = self.prompt.mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), depth + 1)], dim=1)
        extra = self.family.next_inputs(inputs, self.prompt.image_features)
        output = self.family.forward(
            self.model,
            {**extra, "input_ids": torch.full_like(positions, token)},
            self.cache,
            mask=mask,
            positions=positions + depth,
        )
        self.path.append(token)
        self.logs.append(output.logits[:, -1].float().log_softmax(-1))


def answer_tokens(family: Family, text: str) -> Answer:
    """Return the tokens of *text* as an answer of a chat, which begins with a space."""
    # A tokenizer may treat the beginning of its input differently, so a character comes before the
    # answer.
    before = ":"
    first = family.tokenizer(before, add_special_tokens=False)["input_ids"]
    whole = family.tokenizer(f"{before} {text}", add_special_tokens=False)["input_ids"]
    return tuple(whole[len(first) :])
