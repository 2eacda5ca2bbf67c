"""Two ways to do the same, timed in turns; what else the machine did meanwhile is told."""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from idefics_cli.core.types import GenerationRequest

Clock = Callable[[], float]
Tokens = tuple[int, ...]
# Cores that other programs keep busy before a measurement is marked.
FOREIGN_LIMIT = 0.25
# A reference that moves by this factor within one measurement marks it, too.
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
    """What a contender made of a batch of requests, and how long it took.

    Attributes:
        tokens: New tokens of each request, the end token included.
        texts: The same as text.
        seconds: From the requests, with pictures as files, to the last token.
        first_seconds: From there to the first token.
        prompt_tokens: Of the longest prompt, image tokens included; 0 if unknown.
    """

    tokens: tuple[Tokens, ...]
    texts: tuple[str, ...]
    seconds: float
    first_seconds: float
    prompt_tokens: int = 0

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last."""
        return self.seconds - self.first_seconds

    @property
    def steps(self) -> int:
        """Tokens after the first of each request, which decoding made."""
        return sum(max(0, len(tokens) - 1) for tokens in self.tokens)


class Contender(Protocol):
    """One of the two sides."""

    def answer(self, requests: Sequence[GenerationRequest]) -> Measurement:
        """Answer *requests* as one batch, greedily, and say how long it took."""
        ...


class MachineLoad(Protocol):
    """What the machine is busy with."""

    def busy_seconds(self) -> float | None:
        """Return the CPU seconds that all programs used since some moment; None if unknown."""
        ...

    def own_seconds(self) -> float:
        """Return those that this program and its children used."""
        ...


@dataclass(frozen=True, slots=True)
class Round:
    """The same requests, answered by both sides."""

    requests: tuple[GenerationRequest, ...]
    ours: Measurement
    plain: Measurement


@dataclass(frozen=True, slots=True)
class Duel:
    """The rounds of one measurement.

    Attributes:
        rounds: Measured ones, in order.
        warm_up: Not measured, but the answers count.
        foreign_cores: Cores that other programs kept busy on average; None if unknown.
        reference: Values of the reference, one for each round.
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
    """How often to measure.

    Attributes:
        rounds: At most, after one to warm up.
        seconds: No further round begins when a measurement has taken this long; one is always
            made.
    """

    rounds: int = 5
    seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Instruments:
    """What measures besides the contenders.

    Attributes:
        clock: Seconds.
        load: Of the machine.
        reference: Measures what the hardware gives at this moment, in GB/s; None for none.
    """

    clock: Clock
    load: MachineLoad
    reference: Callable[[], float] | None = None


@dataclass(slots=True)
class Watch:
    """The load and the reference while something is measured."""

    instruments: Instruments
    foreign_cores: float | None = None
    _references: list[float] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what other programs use during the block."""
        clock, load = self.instruments.clock, self.instruments.load
        began, busy, own = clock(), load.busy_seconds(), load.own_seconds()
        yield
        wall, busy_after, own_after = clock() - began, load.busy_seconds(), load.own_seconds()
        if busy is not None and busy_after is not None and wall > 0:
            self.foreign_cores = max(0.0, (busy_after - busy) - (own_after - own)) / wall

    def refer(self) -> None:
        """Measure the reference once."""
        if self.instruments.reference is not None:
            self._references.append(self.instruments.reference())

    @property
    def reference(self) -> Series | None:
        """What the reference gave, if anything."""
        return Series(tuple(self._references)) if self._references else None


def duel(
    make: Callable[[int], Sequence[GenerationRequest]],
    ours: Contender,
    plain: Contender,
    *,
    pace: Pace,
    instruments: Instruments,
) -> Duel:
    """Let both sides answer the same requests in turns; who is first changes with every round.

    Args:
        make: Gives the requests of a round. No two rounds may share a prompt or a picture:
            what one side remembers of them must not count.
        ours: One side.
        plain: The other.
        pace: How often.
        instruments: Clock, load and reference.
    """
    watch = Watch(instruments)
    rounds: list[Round] = []
    with watch.watching():
        began = instruments.clock()
        for number in range(pace.rounds + 1):
            rounds.append(_round(number, tuple(make(number)), ours, plain))
            watch.refer()
            if number and instruments.clock() - began >= pace.seconds:
                break
    return Duel(tuple(rounds[1:]), rounds[0], watch.foreign_cores, watch.reference)


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
    """Collect garbage now, and none during the block."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class SystemLoad:
    """The load of this machine, from `/proc` (see proc(5)).

    Args:
        proc: That folder; another in tests.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def busy_seconds(self) -> float | None:
        """Return the CPU seconds of all programs; see `MachineLoad.busy_seconds`."""
        try:
            first = (self._proc / "stat").read_text(encoding="ascii").splitlines()[0].split()
            fields = dict(zip(_FIELDS, map(int, first[1:]), strict=False))
        except (OSError, ValueError, IndexError):
            return None
        # Time for guests is part of `user`; idle and iowait are not work.
        return _ticks(fields) / os.sysconf("SC_CLK_TCK")

    def own_seconds(self) -> float:
        """Return the CPU seconds of this program; see `MachineLoad.own_seconds`."""
        # Children count in these when they have ended.
        times = os.times()
        ended = times.user + times.system + times.children_user + times.children_system
        return ended + sum(map(self._child_seconds, self._proc.glob("[0-9]*/stat")))

    def _child_seconds(self, stat: Path) -> float:
        """Return what a child used, and its own ended children; 0 for other processes."""
        try:
            text = stat.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return 0.0
        # The second field is a name, and may hold spaces and brackets.
        fields = text.rpartition(")")[2].split()
        if fields[1] != str(os.getpid()):
            return 0.0
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def _ticks(fields: Mapping[str, int]) -> int:
    return sum(ticks for name, ticks in fields.items() if name not in ("idle", "iowait"))
