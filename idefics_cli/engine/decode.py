"""The token loop: prefill, then one step per token, with each row sampled its own way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import Finish, Sampling
from idefics_cli.models.families.base import Family, Inputs, left_padded_positions
from idefics_cli.models.library import Model, StepOutput


class Flag(Protocol):
    """Anything that can be set, as a `threading.Event`."""

    def is_set(self) -> bool:
        """Return whether it is set."""
        ...


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

# float32 divides and multiplies by these without running over; what lies beyond changes nothing.
_LEAST, _MOST = 1e-30, 1e30


@torch.inference_mode()
def generate(
    model: Model,
    family: Family,
    inputs: Inputs,
    rows: Sequence[Row],
    *,
    cancel: Flag | None = None,
    on_prefilled: Callable[[], None] | None = None,
    on_token: OnToken | None = None,
) -> None:
    """Fill *rows* with tokens until each has a `finish`.

    Args:
        model: In eval mode.
        family: Of the model.
        inputs: Of B rows, left-padded, on the CPU; see `Family.encode`.
        rows: B replies to fill, in place.
        cancel: Setting it ends every row after the current token.
        on_prefilled: Called once, after the prompt and before the first token.
        on_token: Called after every step; what it raises ends the loop.

    Raises:
        ModelError: If the model computes what is no number.
    """
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    mask = inputs["attention_mask"]
    output = _prefill(model, inputs)
    extra = family.next_inputs(inputs, output)
    if on_prefilled:
        on_prefilled()
    while True:
        _choose(output.logits[:, -1], family, rows)
        if cancel is not None and cancel.is_set():
            _finish_all(rows, "cancelled")
        if on_token:
            on_token(rows)
        if all(row.finish for row in rows):
            return
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        output = _step(model, rows, mask, output, extra, family.pad_id)


def _prefill(model: Model, inputs: Inputs) -> StepOutput:
    """Run the prompts (B, T) and return the logits (B, 1, V) of their last tokens."""
    return model(
        **inputs,
        position_ids=left_padded_positions(inputs["attention_mask"]),
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
    )


def _step(
    model: Model, rows: Sequence[Row], mask: Tensor, last: StepOutput, extra: Inputs, pad_id: int
) -> StepOutput:
    """Run each row's newest token (B, 1) on the KV cache."""
    newest = [[pad_id if row.finish else row.tokens[-1]] for row in rows]
    return model(
        **extra,
        input_ids=torch.tensor(newest, device=mask.device),
        attention_mask=mask,
        position_ids=mask.long().sum(-1, keepdim=True) - 1,
        past_key_values=last.past_key_values,
        use_cache=True,
        return_dict=True,
    )


def _choose(logits: Tensor, family: Family, rows: Sequence[Row]) -> None:
    """Append one token to every row that goes on; *logits* is (B, V)."""
    computed_in = logits.dtype
    # float32, as in transformers 5.23, generation/utils.py.
    logits = logits.to(dtype=torch.float32, copy=True)
    for row, scores in zip(rows, logits, strict=True):
        if row.finish is None and row.sampling.repetition_penalty != 1.0:
            _penalize(scores, row)
    logits[:, sorted(family.banned_ids)] = float("-inf")
    best, likeliest = logits.max(dim=-1)
    highest, greedy = best.tolist(), likeliest.tolist()
    for index, row in enumerate(rows):
        if row.finish is None:
            if not math.isfinite(highest[index]):
                raise _overflow(computed_in)
            token = greedy[index] if row.generator is None else _sample(logits[index].cpu(), row)
            row.tokens.append(token)
            if token in family.stop_ids:
                row.finish = "stop"
            elif len(row.tokens) >= row.limit:
                row.finish = "length"


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


def _finish_all(rows: Sequence[Row], finish: Finish) -> None:
    for row in rows:
        if row.finish is None:
            row.finish = finish
