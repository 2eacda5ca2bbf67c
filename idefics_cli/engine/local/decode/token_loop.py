"""The token loop: prefill, then one step per token, with each row sampled its own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import Cache

from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.decode.sampling import BatchRow, Scores, banned_of, finish_all
from idefics_cli.engine.local.decode.slots import kept_in_order
from idefics_cli.engine.local.decode.steps import PlainStep, Step
from idefics_cli.engine.local.prompt.prefill import Prompt, prefill
from idefics_cli.engine.local.transfer import to_device
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.protocols import Model

OnToken = Callable[[Sequence[BatchRow]], None]
StepOf = Callable[[Prompt, Cache], Step]


class BatchDecoder:
    """Gives rows their next tokens, with one step of the model each.

    Where the step is quick to begin, the next is begun before the host reads the tokens of the
    last: the device then waits for nobody. A row that ended meanwhile had a step too many, of
    its last token; what came out is never read.

    Args:
        step: Runs a token of every row.
        family: Of the model.
        banned: Of `banned_of`.
    """

    def __init__(self, step: Step, family: Family, banned: Tensor) -> None:
        self._step = step
        self._stop_ids = family.stop_ids
        self._banned = banned
        # Of the tokens after those that the rows have.
        self._ahead: Scores | None = None

    def advance(self, rows: Sequence[BatchRow]) -> None:
        """Append a token to each of *rows*, all that go on, and end those that it ends."""
        scores = self._ahead
        if scores is None:
            scores = self._begin(to_device([row.tokens[-1] for row in rows], self._banned.device))
        self._ahead = self._begin(scores.likeliest) if self._may_run_ahead(rows) else None
        scores.choose(rows, self._stop_ids)

    def settle(self, rows: Sequence[BatchRow]) -> None:
        """Read the tokens of what was begun, and begin nothing."""
        if self._ahead is not None:
            scores, self._ahead = self._ahead, None
            scores.choose(rows, self._stop_ids)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with *rows* only; see `Step.keep`."""
        self._step.keep(rows)
        if self._ahead is not None:
            self._ahead.keep(rows)

    def close(self) -> None:
        """Read no more; see `Step.close`."""
        self._step.close()

    def _begin(self, newest: Tensor) -> Scores:
        return Scores(self._step(newest), self._banned)

    def _may_run_ahead(self, rows: Sequence[BatchRow]) -> bool:
        """Whether to begin the step after the one that was begun for *rows*."""
        return (
            self._step.is_quick
            and all(row.takes_likeliest for row in rows)
            # Where all end with the token that is coming, none follows.
            and any(len(row.tokens) + 1 < row.limit for row in rows)
        )


@torch.inference_mode()
def generate(
    model: Model,
    family: Family,
    prompt: Prompt,
    rows: Sequence[BatchRow],
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
            rows that ended last, with or without each reply's last token, or as many as a
            cancelled prefill came to.
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
    banned = banned_of(family, output.logits.device)
    Scores(output.logits[:, -1], banned).choose(rows, family.stop_ids)
    step = step_of(prompt, cache) if step_of else PlainStep(model, family, prompt, cache)
    decoder, going = BatchDecoder(step, family, banned), list(rows)
    while True:
        if cancel is not None and cancel.is_set():
            finish_all(going, "cancelled")
        if on_token:
            on_token(rows)
        kept = kept_in_order([row.finish is not None for row in going])
        if not kept:
            decoder.close()
            return
        if len(kept) < len(going):
            decoder.keep(kept)
            going = [going[index] for index in kept]
        decoder.advance(going)
