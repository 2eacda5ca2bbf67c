"""The queue of requests: which start next, and how many run at a time. No model, no device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from idefics_cli.engine.batching import choose_group
from idefics_cli.engine.protocol import Prepared

# New requests start when this fraction of the slots is free: prompts one at a time would leave
# a GPU idle, and pictures of one shape are encoded together.
_SHARE = 4


@dataclass(slots=True)
class Ticket:
    """A request and its number.

    Attributes:
        index: The number of the request.
        prepared: The request.
        is_single: Whether the request starts alone, because a group that held it failed.
        at_a_time: The number of slots when the request ended, if the memory ran out with it
            before; None otherwise.
    """

    index: int
    prepared: Prepared
    is_single: bool = False
    at_a_time: int | None = None


class RequestSchedule:
    """The requests that wait for a slot, and the number of slots.

    When the memory runs out, the number of slots is halved for the rest of the run. A request
    that does not fit alone is no evidence about the others: when it has ended, the number is what
    it was before that request started.

    Args:
        slots: Maximum number of requests at a time.

    Attributes:
        slots: The current number of slots.
        settled: As *slots*, but a smaller number shows only when every request that ran out of
            memory has ended, so that the number is known to be small enough.
    """

    def __init__(self, slots: int) -> None:
        self.slots = self.settled = slots
        self._waiting: list[Ticket] = []
        # By the index of a ticket: the number of slots when the memory first ran out with it.
        self._slots_before: dict[int, int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no request waits."""
        return not self._waiting

    def add(self, tickets: Iterable[Ticket]) -> None:
        """Append *tickets* to the queue."""
        self._waiting += tickets

    def choose(self, active: int) -> list[Ticket]:
        """Remove the tickets that start now, together, from the queue, and return them.

        Args:
            active: How many requests are running.

        Returns:
            No ticket if too few slots are free.
        """
        free = self.slots - active
        if not self._waiting or free < 1 or (active and free < self.slots // _SHARE):
            return []
        chosen = set(self._next_group(free))
        tickets = [t for index, t in enumerate(self._waiting) if index in chosen]
        self._waiting = [t for index, t in enumerate(self._waiting) if index not in chosen]
        return tickets

    def upcoming(self) -> list[Ticket]:
        """Return the tickets that start next, unless a better match for the first is added."""
        if not self._waiting:
            return []
        return [self._waiting[index] for index in self._next_group(max(1, self.slots // _SHARE))]

    def retry_singly(self, tickets: Sequence[Ticket], *, tried: int) -> Ticket | None:
        """Put *tickets* back, each to start alone, because a group of *tried* requests failed.

        Returns:
            The ticket that was alone already, and so failed for good; None if there is none.
        """
        if tried == 1:
            return tickets[0]
        for ticket in tickets:
            ticket.is_single = True
        self._waiting = [*tickets, *self._waiting]
        return None

    def retry_with_fewer(self, tickets: Sequence[Ticket], *, active: int = 0) -> Ticket | None:
        """Put *tickets* back and halve the slots, because the memory ran out.

        Args:
            tickets: The requests that did not end; may be empty.
            active: How many other requests go on.

        Returns:
            The ticket that had all the memory for itself and does not fit; None if there is none.
        """
        count = len(tickets) + active
        for ticket in tickets:
            self._slots_before.setdefault(ticket.index, self.slots)
        if count == self.slots == 1 and tickets:
            return tickets[0]
        self.slots = max(1, min(self.slots, count) // 2)
        self._waiting = sorted(tickets, key=lambda ticket: ticket.index) + self._waiting
        return None

    def end(self, ticket: Ticket, *, fits: bool = True) -> None:
        """Note that *ticket* has ended, and whether it fitted into the memory."""
        before = self._slots_before.pop(ticket.index, None)
        if before is None:
            return
        ticket.at_a_time = self.slots
        if not fits:
            self.slots = max(self.slots, min(before, self.settled))
        if not self._slots_before:
            self.settled = min(self.settled, self.slots)

    def _next_group(self, most: int) -> list[int]:
        """Return the queue positions of up to *most* requests that start together."""
        most = 1 if self._waiting[0].is_single else most
        return choose_group([ticket.prepared for ticket in self._waiting], most)
