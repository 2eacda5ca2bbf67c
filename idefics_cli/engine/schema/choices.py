"""Choices: how each may be worded, and their probabilities from those of the wordings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from idefics_cli.core.choices import ChoiceResult
from idefics_cli.core.types import Constraint


def choice_constraint(choices: Sequence[str]) -> Constraint:
    """Return the constraint of replies that are one of *choices*."""
    return Constraint("choice", json.dumps(list(choices), ensure_ascii=False))


def choices_of(constraint: Constraint) -> list[str]:
    """Return the choices of a constraint that `choice_constraint` made."""
    choices: list[str] = json.loads(constraint.text)
    return choices


def wordings(choice: str) -> tuple[str, ...]:
    """Return the texts that mean *choice*: as it is, with a capital, and then with a full stop.

    Models of this family answer `Pink.` where a user writes `pink`. On 60 pictures of the built-in
    model, `pink` alone was right 58 times, and all wordings together 60 times.
    """
    capital = choice[:1].upper() + choice[1:]
    ended = capital if capital.endswith((".", "!", "?")) else f"{capital}."
    return tuple(dict.fromkeys((choice, capital, ended)))


def choice_result(choices: Sequence[str], logs: Sequence[Sequence[float]]) -> ChoiceResult:
    """Return the probabilities of *choices*.

    Args:
        choices: The choices.
        logs: For each choice, the logarithms of the probabilities of its wordings.
    """
    largest = max(max(each) for each in logs)
    # All probabilities are divided by that of the likeliest wording, because the probabilities of
    # long answers underflow.
    sums = [math.fsum(math.exp(log - largest) for log in each) for each in logs]
    total = math.fsum(sums)
    shares = tuple((choice, each / total) for choice, each in zip(choices, sums, strict=True))
    return ChoiceResult(shares, min(1.0, math.exp(largest) * total))
