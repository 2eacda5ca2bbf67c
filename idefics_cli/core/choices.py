"""How likely each of some answers is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChoiceResult:
    """How likely each of some answers is.

    Attributes:
        probabilities: Each choice, in the order given, and its share of *mass*.
        mass: Probability that the model gives any of the choices.
    """

    probabilities: tuple[tuple[str, float], ...]
    mass: float

    @property
    def best(self) -> tuple[str, float]:
        """The likeliest choice and its probability."""
        return max(self.probabilities, key=lambda each: each[1])
