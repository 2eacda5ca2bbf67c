"""The token loop: prefill, then one step per token, with each row sampled its own way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import Finish, Sampling
from idefics_cli.engine.cancel import Flag
from idefics_cli.engine.prefill import Prompt, prefill
from idefics_cli.engine.slots import kept_in_order
from idefics_cli.engine.steps import PlainStep, Step
from idefics_cli.models.families.base import Family
from idefics_cli.models.library import Model


@dataclass(slots=True)
class Row:
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

    def __post_init__(self) -> None:
        if self.sampling.temperature > 0:
            # On the CPU, so that a seed means the same on every device and in every batch.
            self.generator = torch.Generator(device="cpu")
            if self.sampling.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(self.sampling.seed)


OnToken = Callable[[Sequence[Row]], None]
StepOf = Callable[[Prompt, Cache], Step]

# float32 divides and multiplies by these without running over; what lies beyond changes nothing.
_LEAST, _MOST = 1e-30, 1e30


@torch.inference_mode()
def generate(
    model: Model,
    family: Family,
    prompt: Prompt,
    rows: Sequence[Row],
    cache: Cache,
    *,
    cancel: Flag | None = None,
    on_prefilled: Callable[[], None] | None = None,
    on_token: OnToken | None = None,
    step_of: StepOf | None = None,
) -> None:
    """Fill *rows* with tokens until each has a `finish`.

    A row that ended leaves the batch: what its pad tokens would cost the others gain.

    Args:
        model: In eval mode.
        family: Of the model.
        prompt: Of B rows.
        rows: B replies to fill, in place.
        cache: Holds the states of the prompts' first tokens, or none; afterwards those of the
            rows that ended last, all but each reply's last token, or as many as a cancelled
            prefill came to.
        cancel: Setting it ends every row after the current token, or piece of the prompt.
        on_prefilled: Called once, after the prompt and before the first token.
        on_token: Called after every step; what it raises ends the loop.
        step_of: Makes what runs a token, when *cache* holds the prompt; None makes a `PlainStep`.

    Raises:
        ModelError: If the model computes what is no number.
    """
    output = prefill(model, family, prompt, cache, cancel=cancel)
    if output is None:
        finish_all(rows, "cancelled")
        return
    if on_prefilled:
        on_prefilled()
    step = step_of(prompt, cache) if step_of else PlainStep(model, family, prompt, cache)
    logits, going = output.logits[:, -1], list(rows)
    banned = banned_of(family, logits.device)
    while True:
        choose(logits, banned, family.stop_ids, going)
        if cancel is not None and cancel.is_set():
            finish_all(going, "cancelled")
        if on_token:
            on_token(rows)
        kept = kept_in_order([row.finish is not None for row in going])
        if not kept:
            step.close()
            return
        if len(kept) < len(going):
            step.keep(kept)
            going = [going[index] for index in kept]
        logits = step([row.tokens[-1] for row in going])


def choose(logits: Tensor, banned: Tensor, stop_ids: Set[int], rows: Sequence[Row]) -> None:
    """Append one token to each of *rows* that goes on, and end those that it ends.

    Args:
        logits: (B, V) of the next tokens; not changed.
        banned: Ids that no reply may hold, where *logits* are.
        stop_ids: End a reply.
        rows: B replies.

    Raises:
        ModelError: If *logits* are no numbers.
    """
    computed_in = logits.dtype
    # float32, as in transformers 5.23, generation/utils.py.
    logits = logits.to(dtype=torch.float32, copy=True)
    for index, row in enumerate(rows):
        if row.finish is None and row.sampling.repetition_penalty != 1.0:
            _penalize(logits[index], row)
    logits.index_fill_(1, banned, float("-inf"))
    best, likeliest = logits.max(dim=-1)
    # Both at once: each trip from a GPU waits for it. Ids below 2**24 are exact as float32.
    highest, greedy = torch.stack([best, likeliest.to(best)]).tolist()
    for index, row in enumerate(rows):
        if row.finish is None:
            if not math.isfinite(highest[index]):
                raise _overflow(computed_in)
            is_greedy = row.generator is None
            token = int(greedy[index]) if is_greedy else _sample(logits[index].cpu(), row)
            row.tokens.append(token)
            if token in stop_ids:
                row.finish = "stop"
            elif len(row.tokens) >= row.limit:
                row.finish = "length"


def banned_of(family: Family, device: torch.device) -> Tensor:
    """Return the ids that no reply may hold, for `choose`."""
    return torch.tensor(sorted(family.banned_ids), dtype=torch.long, device=device)


def _penalize(scores: Tensor, row: Row) -> None:
    """Divide positive and multiply negative *scores* (V,) of tokens seen (arXiv:1909.05858)."""
    seen = torch.tensor(sorted({*row.prompt, *row.tokens}), device=scores.device)
    penalty = _bounded(row.sampling.repetition_penalty)
    values = scores[seen]
    values = torch.where(values < 0, values * penalty, values / penalty)
    scores[seen] = values.clamp(-_MOST, _MOST)


def _sample(scores: Tensor, row: Row) -> int:
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


def finish_all(rows: Sequence[Row], finish: Finish) -> None:
    """End every row that goes on."""
    for row in rows:
        if row.finish is None:
            row.finish = finish
