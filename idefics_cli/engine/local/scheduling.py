"""The queue of requests: which start next, and how many run at a time; without any tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from idefics_cli.engine.batching import choose_group
from idefics_cli.engine.protocol import Prepared

# New requests start when a quarter of the slots is free. Starting them together is faster: a single
# prompt does not fill a GPU, and pictures of one shape are encoded in one forward.
_SHARE = 4


@dataclass(slots=True)
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


class RequestSchedule:
    """The requests that wait for a slot, and the number of slots.

    When the memory runs out, the number of slots is halved for the rest of the run. But if the
    cause is a request that does not fit even alone, the other requests may fit: when it has failed,
    the number of slots becomes what it was before that request.

    Args:
        slots: Maximum number of requests at a time.

    Attributes:
        slots: The current number of slots.
        settled: The last number of slots that is known to be small enough. It follows *slots* when
            every request that ran out of memory has ended.
    """

    def __init__(self, slots: int) -> None:
        self.slots = self.settled = slots
        self._waiting: list[Ticket] = []
        # Index of a ticket -> the number of slots when the memory first ran out with that request.
        self._slots_before: dict[int, int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no request waits."""
        return not self._waiting

    def add(self, tickets: Iterable[Ticket]) -> None:
        """Append *tickets* to the queue."""
        self._waiting += tickets

    def choose(self, active: int) -> list[Ticket]:
        """Remove the tickets that start together now from the queue, and return them.

        Args:
            active: Number of requests that hold a slot.

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
        """Return the tickets that will start next, as far as is known.

        A request that is added later may still fit better to the first of them.
        """
        if not self._waiting:
            return []
        return [self._waiting[index] for index in self._next_group(max(1, self.slots // _SHARE))]

    def retry_singly(self, tickets: Sequence[Ticket], *, tried: int) -> Ticket | None:
        """Put *tickets* back after a group of *tried* requests failed; each then starts alone.

        Returns:
            If the group was a single request: its ticket, which is not put back. None otherwise.
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
