"""The token loop: a prefill, then one step per token; each row has its own sampling settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import Cache

from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.decode.sampling import BatchRow, Scores, banned_of, finish_all
from idefics_cli.engine.local.decode.slots import rows_to_keep
from idefics_cli.engine.local.decode.steps import PlainStep, Step
from idefics_cli.engine.local.prompt.prefill import Prompt, prefill
from idefics_cli.engine.local.transfer import to_device
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.protocols import Model

OnToken = Callable[[Sequence[BatchRow]], None]
StepOf = Callable[[Prompt, Cache], Step]


class BatchDecoder:
    """Appends tokens to rows, with one step of the model for each token.

    If the step is asynchronous, the decoder runs ahead: it starts the next step before the host
    reads the tokens of the current one, so that the device never waits for the host. A row that
    ends with the current step then runs one step too many, whose output is not used.

    Args:
        step: Runs the newest token of every row.
        banned: The result of `banned_of`.
    """

    def __init__(self, step: Step, banned: Tensor) -> None:
        self._step = step
        self._banned = banned
        # The scores of a step that was started ahead.
        self._ahead: Scores | None = None

    def advance(self, rows: Sequence[BatchRow]) -> None:
        """Append a token to each of *rows*, which are all active; some of them may end by it."""
        scores = self._ahead
        if scores is None:
            newest = to_device([row.tokens[-1] for row in rows], self._banned.device)
            scores = self._start_step(newest)
        self._ahead = self._start_step(scores.argmax) if self._may_run_ahead(rows) else None
        scores.choose_tokens(rows)

    def settle(self, rows: Sequence[BatchRow]) -> None:
        """If a step was started ahead, append its tokens to *rows*; start no new step."""
        if self._ahead is not None:
            scores, self._ahead = self._ahead, None
            scores.choose_tokens(rows)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only *rows*; see `Step.keep_rows`."""
        self._step.keep_rows(rows)
        if self._ahead is not None:
            self._ahead.keep_rows(rows)

    def close(self) -> None:
        """Complete the cache; see `Step.close`."""
        self._step.close()

    def _start_step(self, newest: Tensor) -> Scores:
        return Scores(self._step(newest), self._banned)

    def _may_run_ahead(self, rows: Sequence[BatchRow]) -> bool:
        """Whether the next step of *rows* may start before the host has read their tokens."""
        return (
            self._step.is_async
            and all(row.is_argmax for row in rows)
            # If every row reaches its limit with the current token, no further step is needed.
            and any(len(row.tokens) + 1 < row.limit for row in rows)
        )


class TokenLoop:
    """Generates the replies to one batch of prompts.

    Args:
        model: In eval mode.
        family: The family of the model.
        step_of: Called after the prefill; returns the step that decodes. None uses a `PlainStep`.
        chunk_tokens: See `prefill.prefill`.
    """

    def __init__(
        self,
        model: Model,
        family: Family,
        *,
        step_of: StepOf | None = None,
        chunk_tokens: int | None = None,
    ) -> None:
        self._model = model
        self._family = family
        self._step_of = step_of or partial(PlainStep, model, family)
        self._chunk_tokens = chunk_tokens

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, cache: Cache, *, cancel: Flag | None = None) -> Scores | None:
        """Prefill *cache*, and return the scores of the first tokens; None when cancelled."""
        output = prefill(
            self._model, self._family, prompt, cache, cancel=cancel, chunk_tokens=self._chunk_tokens
        )
        if output is None:
            return None
        logits = output.logits[:, -1]
        return Scores(logits, banned_of(self._family, logits.device))

    @torch.inference_mode()
    def generate(
        self,
        prompt: Prompt,
        rows: Sequence[BatchRow],
        cache: Cache,
        *,
        cancel: Flag | None = None,
        on_token: OnToken | None = None,
    ) -> float | None:
        """Fill *rows* with tokens until each has a `finish`.

        Args:
            prompt: The prompts of B rows.
            rows: B replies, filled in place.
            cache: A KV cache that is empty, or holds the states of the first tokens of the prompts.
                Afterwards it holds the states of the rows that ended last; the last token of each
                reply may be missing. After a cancelled prefill, it holds what was computed.
            cancel: When it is set, every row ends after the current token, or after the current
                chunk of the prompt.
            on_token: Called after every step; an error that it raises ends the loop.

        Returns:
            The time, by `time.perf_counter`, at which the prefill ended; None when cancelled.

        Raises:
            ModelError: If the logits contain NaN or infinity.
        """
        scores = self.prefill(prompt, cache, cancel=cancel)
        if scores is None:
            finish_all(rows, "cancelled")
            return None
        prefilled = time.perf_counter()
        scores.choose_tokens(rows)
        decoder = BatchDecoder(self._step_of(prompt, cache), scores.banned)
        _decode(decoder, rows, cancel, on_token)
        return prefilled


def _decode(
    decoder: BatchDecoder, rows: Sequence[BatchRow], cancel: Flag | None, on_token: OnToken | None
) -> None:
    """Decode until each of *rows*, which already have their first token, has a `finish`.

    A row that ended leaves the batch, so that no step spends time on it.
    """
    active = list(rows)
    while True:
        if cancel is not None and cancel.is_set():
            finish_all(active, "cancelled")
        if on_token:
            on_token(rows)
        kept = rows_to_keep([row.finish is not None for row in active])
        if not kept:
            decoder.close()
            return
        if len(kept) < len(active):
            decoder.keep_rows(kept)
            active = [active[index] for index in kept]
        decoder.advance(active)
