"""Sampling: the choice of the next token of each row, greedy or random."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from idefics_cli.core.errors import DeadEndError, ModelError
from idefics_cli.core.text import or_list
from idefics_cli.engine.local.decode.bans import nothing_refused, refuse_completing
from idefics_cli.engine.local.decode.batch_row import BatchRow, has_penalty
from idefics_cli.engine.local.decode.constraint import refused_tokens
from idefics_cli.engine.local.decode.drawing import draw_token, draw_tokens, draws_together
from idefics_cli.engine.local.decode.logprobs import NextLogprobs
from idefics_cli.engine.local.decode.penalties import penalize
from idefics_cli.engine.local.transfer import HostCopy, to_device
from idefics_cli.models.families.base import Family

_Place = tuple[int, BatchRow]  # the number of a row of the logits, and its reply


class Scores:
    """The logits of the next tokens of B rows; a GPU may still be computing them.

    Args:
        logits: (B, V). They are copied, so the caller may overwrite them.
        banned: Ids that no reply may contain, on the device of *logits*.
        waits: Whether the highest logits are only looked for in `constrain`, because a row is
            restricted.

    Attributes:
        argmax: (B,) ids of the highest logits, on the device of *logits*; after `constrain`, of
            those that the guides allow.
        banned: The argument of this name.
    """

    def __init__(self, logits: Tensor, banned: Tensor, *, waits: bool = False) -> None:
        self._logits_dtype = logits.dtype
        # transformers also chooses tokens in float32 (5.23, generation/utils.py).
        self._scores = logits.to(dtype=torch.float32, copy=True)
        self.banned = banned
        self._rows: Sequence[int] = range(len(logits))
        # The rows for which some tokens are forbidden, and the mask (rows, V) of those tokens.
        self._refused: tuple[Tensor | list[int], Tensor] | None = None
        self._is_constrained = False
        self._waits = waits
        self._logprobs: NextLogprobs | None = None
        if not waits:
            self.argmax, self._top = self._find_argmax()

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only *rows*, in this order."""
        self._rows = [self._rows[row] for row in rows]
        if not self._waits:
            self.argmax = self.argmax[to_device(rows, self.argmax.device)]

    def constrain(self, rows: Sequence[BatchRow]) -> None:
        """Refuse the tokens that guides and banned words of active *rows* do not allow; idempotent.

        It is called as late as possible: the guides need all earlier tokens, and while the host
        asks them, a GPU computes the logits.

        Raises:
            ModelError: If a guide fails.
        """
        if self._is_constrained:
            return
        self._is_constrained = True
        self._keep_logprobs(rows)
        restricted = [
            (at, row)
            for at, row in zip(self._rows, rows, strict=True)
            if row.is_restricted and not row.finish
        ]
        if not restricted and not self._waits:
            return
        self._waits = False
        if self._scores.device.type == "cpu":
            argmax, self._top = self._constrain_on_host(restricted)
        else:
            self._refuse(restricted)
            argmax, self._top = self._find_argmax()
        is_whole = isinstance(self._rows, range)
        self.argmax = argmax if is_whole else argmax[to_device(self._rows, argmax.device)]

    def choose_tokens(self, rows: Sequence[BatchRow]) -> None:
        """Append one token to each active row, and set `finish` of the rows that it ends.

        Args:
            rows: B replies; rows with a `finish` stay as they are.

        Raises:
            ModelError: If the logits contain NaN or infinity, or a guide fails.
        """
        self.constrain(rows)
        active = [(at, row) for at, row in zip(self._rows, rows, strict=True) if not row.finish]
        penalized = [(at, row) for at, row in active if has_penalty(row.sampling)]
        for at, row in penalized:
            penalize(self._scores[at], row)
        if penalized:
            _, self._top = self._find_argmax()
        sampled = [(at, row) for at, row in active if row.generator is not None]
        # The draws start before the host waits for the scores, so the device draws meanwhile.
        drawn = self._start_draws(sampled) if sampled and draws_together(self.banned) else None
        highest, argmax = self._top.tolist()
        for at, row in active:
            if not math.isfinite(highest[at]):
                raise _no_token(highest[at], row, self._logits_dtype)
        if drawn is not None:
            tokens = dict(zip((at for at, _ in sampled), drawn.tolist()[0], strict=True))
        else:
            tokens = {at: draw_token(self._scores[at].cpu(), row) for at, row in sampled}
        for at, row in active:
            token = int(tokens.get(at, argmax[at]))
            logprob = self._logprobs.of(at, row, token) if self._logprobs else None
            row.append(token)
            if logprob is not None:
                row.logprobs.append(logprob)

    def _keep_logprobs(self, rows: Sequence[BatchRow]) -> None:
        """Keep the probabilities of rows that tell them, before anything changes the scores."""
        wanted = [
            at
            for at, row in zip(self._rows, rows, strict=True)
            if row.sampling.top_logprobs is not None and not row.finish
        ]
        if wanted:
            self._logprobs = NextLogprobs(self._scores, wanted, self.banned)

    def _constrain_on_host(self, restricted: Sequence[_Place]) -> tuple[Tensor, HostCopy]:
        """Refuse tokens of *restricted* rows on the CPU, and return what `_find_argmax` does.

        A greedy token that is allowed needs no mask. For few rows, numpy is quicker than torch.
        """
        scores = self._scores.index_fill_(1, self.banned, float("-inf")).numpy()
        ids = scores.argmax(axis=1)
        missed = [
            (at, row) for at, row in restricted if not (row.is_argmax and row.allows(int(ids[at])))
        ]
        if missed:
            self._refuse(missed)
            assert self._refused is not None
            refused = self._refused[1].numpy()
            if len(missed) == len(scores):
                np.copyto(scores, -np.inf, where=refused)
                chosen = scores.argmax(axis=1)
            else:
                chosen = ids.copy()
                for (at, _), row_refused in zip(missed, refused, strict=True):
                    np.copyto(scores[at], -np.inf, where=row_refused)
                    chosen[at] = scores[at].argmax()
            for at, row in missed:
                if row.guide:
                    row.guide.agrees = bool(ids[at] == chosen[at])
            ids = chosen
        numbers = np.stack([scores[np.arange(len(ids)), ids], ids.astype(np.float32)])
        return torch.from_numpy(ids), HostCopy(torch.from_numpy(numbers))

    def _refuse(self, restricted: Sequence[_Place]) -> None:
        if restricted:
            refused = _refused_by([row for _, row in restricted], self._scores)
            rows, device = [at for at, _ in restricted], self._scores.device
            self._refused = to_device(rows, device) if device.type == "cuda" else rows, refused

    def _start_draws(self, sampled: Sequence[tuple[int, BatchRow]]) -> HostCopy:
        """Draw a token for each row on the device; return their ids (1, rows) as a copy."""
        numbers = to_device([at for at, _ in sampled], self._scores.device)
        ids = draw_tokens(self._scores[numbers], [row for _, row in sampled])
        return HostCopy(ids[None].to(self._scores))

    def _find_argmax(self) -> tuple[Tensor, HostCopy]:
        """Return the ids (B,) of the highest scores, and a copy of scores and ids to the host."""
        scores = self._scores.index_fill_(1, self.banned, float("-inf"))
        if self._refused is not None:
            # A penalty makes refused scores finite again, so the mask is applied after it.
            rows, refused = self._refused
            if len(refused) == len(scores) and isinstance(self._rows, range):
                scores.masked_fill_(refused, float("-inf"))
            else:
                scores[rows] = scores[rows].masked_fill_(refused, float("-inf"))
        highest, ids = scores.max(dim=-1)
        # One float32 copy to the host is enough, because float32 holds ids below 2**24 exactly.
        return ids, HostCopy(torch.stack([highest, ids.to(highest)]))


def _refused_by(rows: Sequence[BatchRow], scores: Tensor) -> Tensor:
    """Return a mask (rows, V), True for each token that must not come next in its reply."""
    columns, device = scores.shape[1], scores.device
    guided = [(at, row.guide) for at, row in enumerate(rows) if row.guide is not None]
    if len(guided) == len(rows):
        refused = refused_tokens([guide for _, guide in guided], columns, device)
    else:
        refused = nothing_refused(len(rows), columns, device)
        if guided:
            places = to_device([at for at, _ in guided], device)
            refused[places] = refused_tokens([guide for _, guide in guided], columns, device)
    has_bans = any(row.bans for row in rows)
    bans = [(row.bans, row.recent_ids) for row in rows] if has_bans else []
    return refuse_completing(refused, bans)


def banned_of(family: Family, device: torch.device) -> Tensor:
    """Return the ids that no reply may contain, for `Scores`."""
    return to_device(sorted(family.banned_ids), device)


def _no_token(highest: float, row: BatchRow, dtype: torch.dtype) -> ModelError:
    """Return the error for *row*, whose *highest* score is not finite."""
    if row.guide is not None and highest == -math.inf:
        return DeadEndError("the schema or pattern of the answer leaves no token to go on with")
    name = str(dtype).removeprefix("torch.")
    others = or_list([f"`--dtype {n}`" for n in ("bfloat16", "float32") if n != name])
    return ModelError(
        f"the model's numbers went out of range in {name}, so it has no answer",
        hint=f"try {others}; else its weights may be damaged",
    )
