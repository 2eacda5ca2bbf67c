"""Timing of both sides in turns, together with the load of the machine in that time."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from idefics_cli.core.types import GenerationRequest
from idefics_cli.hardware.load import ForeignLoad, MachineLoad

Clock = Callable[[], float]
Tokens = tuple[int, ...]
# A measurement is marked as disturbed if the memory bandwidth changes by more than this factor
# meanwhile. The bandwidth serves as a reference for the state of the hardware.
REFERENCE_LIMIT = 1.25


@dataclass(frozen=True, slots=True)
class Series:
    """The values of several rounds of one side."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The largest value."""
        return max(self.values)


@dataclass(frozen=True, slots=True)
class Measurement:
    """The answers of a contender to a batch of requests, and the time that they took.

    Attributes:
        tokens: The new tokens of each request, the end token included.
        texts: The text of these tokens.
        seconds: Time from the requests to the last token. It includes reading the picture files.
        first_seconds: Time from the requests to the first token.
        prompt_tokens: Length of the longest prompt, image tokens included; 0 if unknown.
    """

    tokens: tuple[Tokens, ...]
    texts: tuple[str, ...]
    seconds: float
    first_seconds: float
    prompt_tokens: int = 0

    @property
    def decode_seconds(self) -> float:
        """Time from the first token to the last."""
        return self.seconds - self.first_seconds

    @property
    def steps(self) -> int:
        """Number of tokens that decode steps gave: all but the first token of each request."""
        return sum(max(0, len(tokens) - 1) for tokens in self.tokens)


class Contender(Protocol):
    """One of the two sides of a benchmark."""

    def answer(self, requests: Sequence[GenerationRequest]) -> Measurement:
        """Answer *requests* greedily as one batch, and measure the time."""
        ...


@dataclass(frozen=True, slots=True)
class Round:
    """The same requests, answered by both sides."""

    requests: tuple[GenerationRequest, ...]
    ours: Measurement
    plain: Measurement


@dataclass(frozen=True, slots=True)
class PairedRounds:
    """The rounds of one measurement, in which both sides took turns.

    Attributes:
        rounds: The measured rounds, in order.
        warm_up: The first round. Its answers are compared, but its times do not count.
        foreign_cores: Cores that other programs kept busy on average; None if unknown.
        reference: Values of the reference (see `Instruments`), one for each round.
    """

    rounds: tuple[Round, ...]
    warm_up: Round
    foreign_cores: float | None = None
    reference: Series | None = None

    @property
    def all_rounds(self) -> tuple[Round, ...]:
        """The warm-up and the measured rounds."""
        return (self.warm_up, *self.rounds)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a measurement takes.

    Attributes:
        rounds: Largest number of rounds, without the warm-up.
        seconds: Time after which no further round begins. At least one round is measured.
    """

    rounds: int = 5
    seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Instruments:
    """Instruments for a measurement.

    Attributes:
        clock: Returns seconds.
        load: Returns the CPU time that programs have used.
        reference: Measures the memory bandwidth of the hardware at this moment, in GB/s; None if
            there is no reference.
    """

    clock: Clock
    load: MachineLoad
    reference: Callable[[], float] | None = None


@dataclass(slots=True)
class Watch:
    """Observes the load of the machine and the reference during a measurement."""

    instruments: Instruments
    foreign_cores: float | None = None
    _references: list[float] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure the load by other programs during the `with` block."""
        watch = ForeignLoad(self.instruments.load, self.instruments.clock)
        with watch.watching():
            yield
        self.foreign_cores = watch.cores

    def measure_reference(self) -> None:
        """Measure the reference once, if there is one."""
        if self.instruments.reference is not None:
            self._references.append(self.instruments.reference())

    @property
    def reference(self) -> Series | None:
        """The values of the reference so far; None if there are none."""
        return Series(tuple(self._references)) if self._references else None


def measure_in_turns(
    make: Callable[[int], Sequence[GenerationRequest]],
    ours: Contender,
    plain: Contender,
    *,
    pace: Pace,
    instruments: Instruments,
) -> PairedRounds:
    """Let both sides answer the same requests in turns; the first side changes with each round.

    Args:
        make: Makes the requests of a round. No two rounds may share a prompt or a picture,
            because a side may cache them.
        ours: Our side.
        plain: The side of plain transformers.
        pace: Length of the measurement.
        instruments: The clock, the load of the machine, and the reference.
    """
    watch = Watch(instruments)
    rounds: list[Round] = []
    with watch.watching():
        began = instruments.clock()
        for number in range(pace.rounds + 1):
            rounds.append(_round(number, tuple(make(number)), ours, plain))
            watch.measure_reference()
            if number and instruments.clock() - began >= pace.seconds:
                break
    return PairedRounds(tuple(rounds[1:]), rounds[0], watch.foreign_cores, watch.reference)


def _round(
    number: int, requests: tuple[GenerationRequest, ...], ours: Contender, plain: Contender
) -> Round:
    with without_collection():
        if number % 2:
            mine = ours.answer(requests)
            theirs = plain.answer(requests)
        else:
            theirs = plain.answer(requests)
            mine = ours.answer(requests)
    return Round(requests, mine, theirs)


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect garbage now, and switch the garbage collector off during the `with` block."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
