"""A row of the batch: one reply while it is generated, and the end of it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

from idefics_cli.core.types import Finish, Sampling
from idefics_cli.engine.local.decode.bans import find_completing
from idefics_cli.engine.local.decode.constraint import Guide
from idefics_cli.engine.local.decode.detokenize import Detokenizer


@dataclass(frozen=True, slots=True)
class IdLogprob:
    """The natural logarithm of the probability of a token.

    Attributes:
        logprob: It does not depend on temperature, penalties and constraints.
        top: Ids of the likeliest tokens with theirs, the likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


def has_penalty(sampling: Sampling) -> bool:
    """Return whether tokens that the text has get lower scores."""
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


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
        draw: Random number () from 0 to below 1, on the CPU, that chooses the next token. It stays
            until that token is appended; None if it is not drawn yet.
        guide: Says which tokens may follow; None allows all that are not banned.
        bans: Ids of the words that the reply must not hold, each of one token or more.
        stops: Finds the texts that end the reply; None if there are none.
        answers: The tokens of the answers to score instead of generating a reply; mostly none.
        logprobs: The probabilities of *tokens*, if the sampling asks for them.
        answer_logs: The logarithm of the probability of each of *answers*, once it is known.
    """

    sampling: Sampling
    prompt: list[int]
    limit: int
    stop_ids: Set[int] = frozenset()
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None
    generator: torch.Generator | None = None
    draw: Tensor | None = None
    guide: Guide | None = None
    bans: Sequence[Sequence[int]] = ()
    stops: Detokenizer | None = None
    answers: Sequence[tuple[int, ...]] = ()
    logprobs: list[IdLogprob] = field(default_factory=list)
    answer_logs: Sequence[float] = ()

    @property
    def is_argmax(self) -> bool:
        """Whether each token is the one with the highest logit, without a penalty."""
        return self.generator is None and not has_penalty(self.sampling)

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
        self.draw = None
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
