"""Who is answered next, and how many at a time; knows neither a model nor a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from idefics_cli.engine.batching import together
from idefics_cli.engine.protocol import Prepared

# Requests are let in when so large a part of the slots is free: a prompt at a time would leave
# a GPU idle, and pictures of one shape are encoded together.
_SHARE = 4


@dataclass(slots=True)
class Ticket:
    """A request and its number.

    Attributes:
        index: Its number.
        prepared: The request.
        is_apart: Whether it begins alone, because a group with it failed.
        at_a_time: When it has ended: how many slots there were, if the memory had run out with
            it before.
    """

    index: int
    prepared: Prepared
    is_apart: bool = False
    at_a_time: int | None = None


class RequestSchedule:
    """What waits for a slot, and how many slots there are.

    When the memory runs out, there are half as many from then on. What does not fit alone says
    nothing about the others: when it has ended, there are as many as before it came.

    Args:
        slots: Most requests at a time.

    Attributes:
        slots: As given, or fewer since the memory ran out.
        settled: As *slots*, but fewer only when all that had run out of memory has ended, so
            that the number is known to be enough.
    """

    def __init__(self, slots: int) -> None:
        self.slots = self.settled = slots
        self._waiting: list[Ticket] = []
        # By the number of a ticket, the slots that there were when the memory ran out with it.
        self._short: dict[int, int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def add(self, tickets: Iterable[Ticket]) -> None:
        """Let *tickets* wait, behind those that do."""
        self._waiting += tickets

    def choose(self, going: int) -> list[Ticket]:
        """Return those that begin now, together, while *going* others go on; often none.

        They wait no longer.
        """
        free = self.slots - going
        if not self._waiting or free < 1 or (going and free < self.slots // _SHARE):
            return []
        chosen = set(self._together(free))
        tickets = [t for index, t in enumerate(self._waiting) if index in chosen]
        self._waiting = [t for index, t in enumerate(self._waiting) if index not in chosen]
        return tickets

    def upcoming(self) -> list[Ticket]:
        """Return those that begin next, if none comes before that goes better with the first."""
        if not self._waiting:
            return []
        return [self._waiting[index] for index in self._together(max(1, self.slots // _SHARE))]

    def set_apart(self, tickets: Sequence[Ticket], *, tried: int) -> Ticket | None:
        """Let those that are left of *tried* that failed try again, each alone.

        Returns:
            The one that was tried alone.
        """
        if tried == 1:
            return tickets[0]
        for ticket in tickets:
            ticket.is_apart = True
        self._waiting = [*tickets, *self._waiting]
        return None

    def run_short(self, tickets: Sequence[Ticket], *, going: int = 0) -> Ticket | None:
        """Let *tickets* begin again in half as many slots; the memory was not enough for them.

        Args:
            tickets: Those that did not end; perhaps none.
            going: How many others go on.

        Returns:
            The one that has had all the memory for itself, and does not fit.
        """
        count = len(tickets) + going
        for ticket in tickets:
            self._short.setdefault(ticket.index, self.slots)
        if count == self.slots == 1 and tickets:
            return tickets[0]
        self.slots = max(1, min(self.slots, count) // 2)
        self._waiting = sorted(tickets, key=lambda ticket: ticket.index) + self._waiting
        return None

    def end(self, ticket: Ticket, *, fits: bool = True) -> None:
        """Note that *ticket* has ended, and whether it fitted into the memory."""
        before = self._short.pop(ticket.index, None)
        if before is None:
            return
        ticket.at_a_time = self.slots
        if not fits:
            self.slots = max(self.slots, min(before, self.settled))
        if not self._short:
            self.settled = min(self.settled, self.slots)

    def _together(self, most: int) -> list[int]:
        """Return the places among those that wait of up to *most* that are to begin together."""
        most = 1 if self._waiting[0].is_apart else most
        return together([ticket.prepared for ticket in self._waiting], most)
