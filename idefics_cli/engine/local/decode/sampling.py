"""Which token comes next: the likeliest, or one drawn, and what ends a reply."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import Finish, Sampling
from idefics_cli.engine.local.transfer import Arrival, to_device
from idefics_cli.models.families.base import Family

# float32 divides and multiplies by these without running over; what lies beyond changes nothing.
_LEAST, _MOST = 1e-30, 1e30


@dataclass(slots=True)
class BatchRow:
    """One reply in the making.

    Attributes:
        sampling: How its tokens are chosen.
        prompt: Ids of the prompt without padding.
        limit: Most tokens that it may have.
        tokens: Ids generated so far.
        finish: Why it ended; None while it goes on.
        generator: Source of its randomness; None when greedy.
    """

    sampling: Sampling
    prompt: list[int]
    limit: int
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None
    generator: torch.Generator | None = None

    @property
    def takes_likeliest(self) -> bool:
        """Whether each of its tokens is the likeliest, whatever came before."""
        return self.generator is None and self.sampling.repetition_penalty == 1.0

    def __post_init__(self) -> None:
        if self.sampling.temperature > 0:
            # On the CPU, so that a seed means the same on every device and in every batch.
            self.generator = torch.Generator(device="cpu")
            if self.sampling.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(self.sampling.seed)


class Scores:
    """What a model says of the next tokens of B rows; a GPU may still be computing it.

    Args:
        logits: (B, V); copied, so that they may be overwritten.
        banned: Ids that no reply may hold, where *logits* are.

    Attributes:
        likeliest: (B,) ids, where the logits are.
    """

    def __init__(self, logits: Tensor, banned: Tensor) -> None:
        self._computed_in = logits.dtype
        # float32, as in transformers 5.23, generation/utils.py.
        self._scores = logits.to(dtype=torch.float32, copy=True)
        self._banned = banned
        self._rows: Sequence[int] = range(len(logits))
        self.likeliest, self._top = self._find_likeliest()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with *rows* only, in this order."""
        self._rows = [self._rows[row] for row in rows]
        self.likeliest = self.likeliest[to_device(rows, self.likeliest.device)]

    def choose(self, rows: Sequence[BatchRow], stop_ids: Set[int]) -> None:
        """Append one token to each of *rows* that goes on, and end those that it ends.

        Args:
            rows: B replies.
            stop_ids: End a reply.

        Raises:
            ModelError: If the logits are no numbers.
        """
        going = [(at, row) for at, row in zip(self._rows, rows, strict=True) if not row.finish]
        penalized = [(at, row) for at, row in going if row.sampling.repetition_penalty != 1.0]
        for at, row in penalized:
            _penalize(self._scores[at], row)
        if penalized:
            _, self._top = self._find_likeliest()
        highest, likeliest = self._top.tolist()
        for at, row in going:
            if not math.isfinite(highest[at]):
                raise _overflow(self._computed_in)
            is_greedy = row.generator is None
            token = int(likeliest[at]) if is_greedy else _sample(self._scores[at].cpu(), row)
            row.tokens.append(token)
            if token in stop_ids:
                row.finish = "stop"
            elif len(row.tokens) >= row.limit:
                row.finish = "length"

    def _find_likeliest(self) -> tuple[Tensor, Arrival]:
        """Return the ids (B,) of the highest scores; and both (2, B), on their way to the host."""
        highest, ids = self._scores.index_fill_(1, self._banned, float("-inf")).max(dim=-1)
        # Ids below 2**24 are exact as float32.
        return ids, Arrival(torch.stack([highest, ids.to(highest)]))


def banned_of(family: Family, device: torch.device) -> Tensor:
    """Return the ids that no reply may hold, for `Scores`."""
    return to_device(sorted(family.banned_ids), device)


def _penalize(scores: Tensor, row: BatchRow) -> None:
    """Divide positive and multiply negative *scores* (V,) of tokens seen (arXiv:1909.05858)."""
    seen = to_device(sorted({*row.prompt, *row.tokens}), scores.device)
    penalty = _bounded(row.sampling.repetition_penalty)
    values = scores[seen]
    values = torch.where(values < 0, values * penalty, values / penalty)
    scores[seen] = values.clamp(-_MOST, _MOST)


def _sample(scores: Tensor, row: BatchRow) -> int:
    """Draw a token from *scores* (V,): temperature, then top-k, then top-p."""
    sampling = row.sampling
    # The highest becomes 0, which no temperature can make too large.
    scores = (scores - scores.max()) / _bounded(sampling.temperature)
    if sampling.top_k:
        kept = scores.topk(min(sampling.top_k, scores.numel())).values
        scores = scores.masked_fill(scores < kept[-1], float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = scores.sort(descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        # The most likely token always stays, even if so small a share is zero as float32.
        outside[0] = False
        scores = scores.masked_fill(
            torch.zeros_like(outside).scatter(0, order, outside), float("-inf")
        )
    return int(torch.multinomial(scores.softmax(-1), 1, generator=row.generator))


def _bounded(value: float) -> float:
    return min(max(value, _LEAST), _MOST)


def _overflow(dtype: torch.dtype) -> ModelError:
    name = str(dtype).removeprefix("torch.")
    return ModelError(
        f"the model's numbers went out of range in {name}, so it has no answer",
        hint="try `--dtype bfloat16` or `--dtype float32`; else its weights may be damaged",
    )


def finish_all(rows: Sequence[BatchRow], finish: Finish) -> None:
    """End every row that goes on."""
    for row in rows:
        if row.finish is None:
            row.finish = finish
