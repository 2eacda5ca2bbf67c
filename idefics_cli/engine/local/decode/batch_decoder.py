"""Decoding: one step of the model for each token, with each row sampled its own way."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.sampling import Scores
from idefics_cli.engine.local.decode.steps import Step
from idefics_cli.engine.local.transfer import to_device


class BatchDecoder:
    """Gives rows their next tokens, with one step of the model for each token.

    If the step is asynchronous, the decoder starts a step before the host reads the tokens of the
    step before, so that the device never waits for the host. A row that has ended by then runs one
    step too many, whose output is never read.

    Args:
        step: Runs a token of every row.
        banned: The result of `banned_of`.
    """

    def __init__(self, step: Step, banned: Tensor) -> None:
        self._step = step
        self._banned = banned
        # The scores of the next step, if that step was started before this step's tokens were
        # chosen.
        self._ahead: Scores | None = None

    def advance(self, rows: Sequence[BatchRow]) -> None:
        """Append a token to each of *rows*, all active, and end the rows that it ends."""
        scores = self._ahead
        if scores is None:
            newest = to_device([row.tokens[-1] for row in rows], self._banned.device)
            scores = self._start_step(newest, rows)
        scores.constrain(rows)
        self._ahead = self._start_step(scores.argmax, rows) if self._may_run_ahead(rows) else None
        scores.choose_tokens(rows)

    def settle(self, rows: Sequence[BatchRow]) -> None:
        """Read the tokens of a step that was started ahead, and start none."""
        if self._ahead is not None:
            scores, self._ahead = self._ahead, None
            scores.choose_tokens(rows)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only *rows*; see `Step.keep_rows`."""
        self._step.keep_rows(rows)
        if self._ahead is not None:
            self._ahead.keep_rows(rows)

    def _start_step(self, newest: Tensor, rows: Sequence[BatchRow]) -> Scores:
        waits = any(row.is_restricted for row in rows)
        return Scores(self._step(newest), self._banned, waits=waits)

    def _may_run_ahead(self, rows: Sequence[BatchRow]) -> bool:
        """Return whether to start the step after the one that was started for *rows*."""
        return (
            self._step.is_async
            and all(row.is_argmax for row in rows)
            # If the next token is the last one of every row, no step follows.
            and any(len(row.tokens) + 1 < row.limit for row in rows)
        )
