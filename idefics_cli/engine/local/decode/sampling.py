"""Sampling: the choice of the next token, greedy or random, and the end of a reply."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from idefics_cli.core.errors import DeadEndError, ModelError
from idefics_cli.core.text import or_list
from idefics_cli.core.types import Finish, Sampling
from idefics_cli.engine.local.decode.bans import (
    find_completing,
    nothing_refused,
    refuse_completing,
)
from idefics_cli.engine.local.decode.constraint import Guide, refused_tokens
from idefics_cli.engine.local.decode.detokenize import Detokenizer
from idefics_cli.engine.local.transfer import HostCopy, stacked_on, to_device
from idefics_cli.models.families.base import Family

# Temperatures and penalties are limited to this range, and penalized scores to -`_MOST` to `_MOST`,
# so that float32 does not overflow. Values beyond these limits would give the same tokens.
_LEAST, _MOST = 1e-30, 1e30


@dataclass(slots=True)
class BatchRow:
    """One reply while it is generated.

    Attributes:
        sampling: How the tokens are chosen.
        prompt: Ids of the prompt without padding.
        limit: Maximum number of tokens of the reply.
        stop_ids: Ids that end the reply.
        tokens: Ids generated so far.
        finish: Why the reply ended; None while it goes on.
        generator: Source of randomness; None for greedy decoding.
        noise: Random numbers (V,) with which `draw_tokens` draws the next token. They stay until
            that token is appended; None if they are not drawn yet.
        guide: Says which tokens may follow; None allows all that are not banned.
        bans: Ids of the words that the reply must not hold, each of one token or more.
        stops: Finds the texts that end the reply; None if there are none.
        answers: The tokens of the answers to score instead of generating a reply; mostly none.
        answer_logs: The logarithm of the probability of each of *answers*, once it is known.
    """

    sampling: Sampling
    prompt: list[int]
    limit: int
    stop_ids: Set[int] = frozenset()
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None
    generator: torch.Generator | None = None
    noise: Tensor | None = None
    guide: Guide | None = None
    bans: Sequence[Sequence[int]] = ()
    stops: Detokenizer | None = None
    answers: Sequence[tuple[int, ...]] = ()
    answer_logs: Sequence[float] = ()

    @property
    def is_argmax(self) -> bool:
        """Whether each token is the one with the highest logit, without a repetition penalty."""
        return self.generator is None and self.sampling.repetition_penalty == 1.0

    @property
    def is_restricted(self) -> bool:
        """Whether the next tokens that are allowed depend on those before."""
        return self.guide is not None or bool(self.bans)

    @property
    def recent_ids(self) -> list[int]:
        """The last ids of the prompt and the reply, as many as the longest banned word has."""
        count = max((len(ban) for ban in self.bans), default=1)
        return [*self.prompt[-count:], *self.tokens[-count:]][-count:]

    def allows(self, token: int) -> bool:
        """Return whether *token* may come next; False if only a mask can tell."""
        if token in find_completing(self.bans, self.recent_ids):
            return False
        return self.guide is None or self.guide.agrees_on(token)

    def append(self, token: int) -> None:
        """Append *token*, and set `finish` if it ends the reply.

        Raises:
            ModelError: If the guide does not allow *token*.
        """
        if self.guide is not None:
            self.guide.accept(token)
        self.tokens.append(token)
        self.noise = None
        if (
            token in self.stop_ids
            or (self.guide is not None and self.guide.is_over)
            or self._reaches_stop()
        ):
            self.finish = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish = "length"

    def _reaches_stop(self) -> bool:
        if self.stops is None:
            return False
        self.stops.feed(self.tokens)
        return self.stops.has_stopped

    def __post_init__(self) -> None:
        if self.sampling.temperature > 0:
            # Each row has its own generator, which is on the CPU. So a seed gives the same draws on
            # every device and in every batch.
            self.generator = torch.Generator(device="cpu")
            if self.sampling.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(self.sampling.seed)


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
        penalized = [(at, row) for at, row in active if row.sampling.repetition_penalty != 1.0]
        for at, row in penalized:
            _penalize(self._scores[at], row)
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
            row.append(int(tokens.get(at, argmax[at])))

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


def draw_token(scores: Tensor, row: BatchRow) -> int:
    """Draw a token from *scores* (V,), after temperature, top-k and top-p in this order."""
    sampling = row.sampling
    # The highest score becomes 0, so that no temperature can make the scores overflow.
    scores = (scores - scores.max()) / _bounded(sampling.temperature)
    if sampling.top_k:
        kept = scores.topk(min(sampling.top_k, scores.numel())).values
        scores = scores.masked_fill(scores < kept[-1], float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = scores.sort(descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        # The most likely token always stays, even if top-p is so small that it is 0 in float32.
        outside[0] = False
        scores = scores.masked_fill(
            torch.zeros_like(outside).scatter(0, order, outside), float("-inf")
        )
    return int(torch.multinomial(scores.softmax(-1), 1, generator=row.generator))


def draws_together(scores: Tensor) -> bool:
    """Return whether `draw_tokens` is faster than `draw_token` for each row of *scores*.

    On a GPU, every row that the host draws is a wait for the device and a sort on one core. On a
    CPU the rows have to be sorted one by one anyway.
    """
    return scores.is_cuda


def draw_tokens(scores: Tensor, rows: Sequence[BatchRow]) -> Tensor:
    """Draw a token for each of B *rows* from *scores* (B, V), as `draw_token` does for one.

    `torch.multinomial` divides the probabilities by exponential noise and takes the largest
    quotient (Distributions.cpp of torch 2.13). Here the generators of the rows draw the same noise
    on the host, so a seed gives the same tokens on every device, except for rounding, and for equal
    scores at the edge of top-p. The host never waits for the device.

    Returns:
        Ids (B,) on the device of *scores*.
    """
    device, size = scores.device, scores.shape[-1]
    noise = stacked_on([_next_noise(row, size) for row in rows], device)
    settings = torch.tensor([_numbers(row.sampling, size) for row in rows])
    temperature, top_k, top_p = stacked_on(settings.t().unbind(), device)[..., None]
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature
    if any(row.sampling.top_k or row.sampling.top_p < 1.0 for row in rows):
        # The sort is stable, so that equal scores have one order in every batch.
        ordered, order = scores.sort(descending=True, stable=True)
        ordered = ordered.masked_fill(ordered < ordered.gather(-1, top_k.long() - 1), -math.inf)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p
        outside[:, 0] = False
        outside |= ordered.isneginf()
        outside = torch.zeros_like(outside).scatter(-1, order, outside)
        scores = scores.masked_fill(outside, -math.inf)
    return (scores.softmax(-1) / noise).argmax(-1)


def _numbers(sampling: Sampling, size: int) -> tuple[float, float, float]:
    """Return temperature, top-k and top-p for a vocabulary of *size*; no limit is a large one."""
    top_k = min(sampling.top_k or size, size)
    return (
        _bounded(sampling.temperature),
        float(top_k),
        sampling.top_p if sampling.top_p < 1.0 else math.inf,
    )


def _next_noise(row: BatchRow, size: int) -> Tensor:
    """Return the noise (V,) for the next token of *row*.

    It stays with the row until the token is appended. So a reply that an error takes back draws the
    same token again.
    """
    if row.noise is None:
        row.noise = torch.empty(size).exponential_(generator=row.generator)
    return row.noise


def _penalize(scores: Tensor, row: BatchRow) -> None:
    """Lower the *scores* (V,) of all tokens of *row* by the repetition penalty (arXiv:1909.05858).

    Positive scores are divided by the penalty, negative scores are multiplied by it.
    """
    seen = to_device(sorted({*row.prompt, *row.tokens}), scores.device)
    penalty = _bounded(row.sampling.repetition_penalty)
    values = scores[seen]
    values = torch.where(values < 0, values * penalty, values / penalty)
    scores[seen] = values.clamp(-_MOST, _MOST)


def _bounded(value: float) -> float:
    return min(max(value, _LEAST), _MOST)


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
