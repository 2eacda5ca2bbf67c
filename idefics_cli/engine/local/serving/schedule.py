"""The queue of requests: which start next, and how many run at a time; without any tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from idefics_cli.engine.batching import choose_group
from idefics_cli.engine.protocol import Prepared

# New requests start when a quarter of the slots is free. Starting them together is faster: a single
# prompt does not fill a GPU, and pictures of one shape are encoded in one forward.
_SHARE = 4


@dataclass(slots=True, eq=False)
class Ticket:
    """A request and its number.

    Attributes:
        index: The number of the request.
        prepared: The request.
        is_single: Whether the request must start alone, because an earlier group with it failed.
        at_a_time: If the memory ran out while the request was active: the number of slots when the
            request ended. None otherwise.
    """

    index: int
    prepared: Prepared
    is_single: bool = False
    at_a_time: int | None = None


AnyTicket = TypeVar("AnyTicket", bound=Ticket)


def _fits(tickets: Sequence[Ticket]) -> bool:
    return True


class RequestSchedule(Generic[AnyTicket]):
    """The requests that wait for a slot, and the number of slots.

    When the memory runs out, the number of slots is halved for the rest of the run. The exception
    is a request that does not fit even alone: after it has failed, the number of slots becomes what
    it was before that request, because the others may fit.

    Args:
        slots: Maximum number of requests at a time.
        least_share: Requests start when 1 / *least_share* of the slots is free, or all are.
        most_together: Maximum number of requests that start together; None for no limit.

    Attributes:
        slots: The current number of slots.
        settled: The last number of slots that is known to be small enough. It follows *slots* when
            every request that ran out of memory has ended.
    """

    def __init__(
        self, slots: int, *, least_share: int = _SHARE, most_together: int | None = None
    ) -> None:
        self.slots = self.settled = slots
        self._least_share = least_share
        self._most_together = most_together
        self._waiting: list[AnyTicket] = []
        # The key is the index of a ticket that ran out of memory. The value is the number of slots
        # when the memory ran out for this ticket for the first time.
        self._slots_before: dict[int, int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no request waits."""
        return not self._waiting

    @property
    def waiting(self) -> Sequence[AnyTicket]:
        """The requests that wait, in the order in which they came."""
        return self._waiting

    def add(self, tickets: Iterable[AnyTicket]) -> None:
        """Append *tickets* to the queue."""
        self._waiting += tickets

    def remove(self, tickets: Iterable[AnyTicket]) -> None:
        """Remove *tickets* from the queue."""
        gone = {ticket.index for ticket in tickets}
        self._waiting = [ticket for ticket in self._waiting if ticket.index not in gone]

    def has_room(self, active: int) -> bool:
        """Return whether a request waits, and enough slots are free to start it.

        Args:
            active: How many requests are running.
        """
        free = self.slots - active
        return bool(
            self._waiting and free > 0 and (not active or free >= self.slots // self._least_share)
        )

    def choose(
        self, active: int, fits: Callable[[Sequence[AnyTicket]], bool] = _fits
    ) -> list[AnyTicket]:
        """Remove the tickets that start now, together, from the queue, and return them.

        Args:
            active: How many requests are running.
            fits: Returns whether tickets may start together; if not, fewer are tried.

        Returns:
            No ticket if too few slots are free, or if not even one fits.
        """
        if not self.has_room(active):
            return []
        chosen = self._next_group(self.slots - active)
        while chosen and not fits([self._waiting[index] for index in chosen]):
            chosen = self._next_group(len(chosen) - 1) if len(chosen) > 1 else []
        tickets = [self._waiting[index] for index in chosen]
        self.remove(tickets)
        return tickets

    def take_all(self) -> list[AnyTicket]:
        """Remove all tickets from the queue, and return them."""
        tickets, self._waiting = self._waiting, []
        return tickets

    def upcoming(self) -> list[AnyTicket]:
        """Return the tickets that start next, unless a better match for the first is added."""
        if not self._waiting:
            return []
        return [self._waiting[index] for index in self._next_group(max(1, self.slots // _SHARE))]

    def retry_singly(self, tickets: Sequence[AnyTicket], *, tried: int) -> AnyTicket | None:
        """Put *tickets* back, each to start alone, because a group of *tried* requests failed.

        Returns:
            If the group was a single request: its ticket, which is not put back. None otherwise.
        """
        if tried == 1:
            return tickets[0]
        for ticket in tickets:
            ticket.is_single = True
        self._waiting = [*tickets, *self._waiting]
        return None

    def put_back(self, tickets: Sequence[AnyTicket]) -> None:
        """Put *tickets* back to the front of the queue, in the order in which they came."""
        self._waiting = sorted(tickets, key=lambda ticket: ticket.index) + self._waiting

    def retry_with_fewer(
        self, tickets: Sequence[AnyTicket], *, active: int = 0
    ) -> AnyTicket | None:
        """Put *tickets* back and halve the slots, because the memory ran out.

        Args:
            tickets: The requests that did not end; may be empty.
            active: Number of other requests, which keep their slots.

        Returns:
            If a request does not fit even alone: its ticket, which is not put back. None otherwise.
        """
        count = len(tickets) + active
        for ticket in tickets:
            self._slots_before.setdefault(ticket.index, self.slots)
        if count == self.slots == 1 and tickets:
            return tickets[0]
        self.slots = max(1, min(self.slots, count) // 2)
        self.put_back(tickets)
        return None

    def end(self, ticket: AnyTicket, *, fits: bool = True) -> None:
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
        most = 1 if self._waiting[0].is_single else min(most, self._most_together or most)
        return choose_group([ticket.prepared for ticket in self._waiting], most)
