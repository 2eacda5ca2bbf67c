"""Many requests through a few slots: as one reply ends, the next request takes its place."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import Cache

from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.engine import Prepared
from idefics_cli.engine.batching import alike
from idefics_cli.engine.cancel import Flag
from idefics_cli.engine.decode import Row, banned_of, choose, finish_all
from idefics_cli.engine.inference import Answer, Inference
from idefics_cli.engine.memory import as_memory_limit
from idefics_cli.engine.prefill import Prompt, prefill
from idefics_cli.engine.prefix import new_cache
from idefics_cli.engine.slots import kept_in_order
from idefics_cli.engine.steps import SlotStep

_log = logging.getLogger(__name__)
# Requests are let in when so large a part of the slots is free: a prompt at a time would leave
# a GPU idle, and pictures of one shape are encoded together.
_SHARE = 4

Outcome = Answer | Exception
"""An answer of one row, or what made its request fail alone."""


@dataclass(slots=True)
class Ticket:
    """A request and its number.

    Attributes:
        index: Its number.
        prepared: The request.
        is_apart: Whether its prompt is computed alone, because a group with it failed.
    """

    index: int
    prepared: Prepared
    is_apart: bool = False


class Inbox(Protocol):
    """Where requests come from."""

    def take(self, most: int, *, waits: bool) -> list[Ticket]:
        """Return up to *most* that are here; if it *waits*, none only when no more will come."""
        ...


@dataclass(slots=True)
class _Going:
    """A reply in the making."""

    ticket: Ticket
    row: Row
    prefill_seconds: float
    prefilled: float


@dataclass(slots=True)
class _Opened:
    """Replies whose prompts are computed; no prompt when cancelled."""

    going: list[_Going]
    prompt: Prompt | None
    cache: Cache


class Server:
    """Answers requests as slots get free; belongs to the thread of the inference.

    When the memory runs out, what was being answered is begun again in half as many slots.

    Args:
        inference: Of the model.
        size: Slots.
        deliver: Told of each request's outcome, as soon as it ended.
    """

    def __init__(
        self, inference: Inference, size: int, deliver: Callable[[Ticket, Outcome], None]
    ) -> None:
        self._inference = inference
        self._size = size
        self._deliver = deliver
        self._waiting: list[Ticket] = []
        self._going: list[_Going] = []
        self._cancel: Flag | None = None

    @torch.inference_mode()
    def serve(self, inbox: Inbox, cancel: Flag) -> None:
        """Answer what comes from *inbox* until no more will come, or *cancel* is set."""
        self._cancel = cancel
        try:
            if self._inference.slots_problem is None:
                self._serve(inbox, cancel)
            else:
                self._serve_batches(inbox, cancel)
        finally:
            self._inference.leave_slots()

    def _serve(self, inbox: Inbox, cancel: Flag) -> None:
        step = self._new_step()
        while not cancel.is_set():
            if self._wants_more():
                self._fetch(inbox)
                if self._waiting:
                    if not self._let_in(step):
                        step = self._new_step()
                    continue
                if not self._going:
                    return
            if not self._advance(step):
                step = self._new_step()
        self._end_all(self._going)

    def _wants_more(self) -> bool:
        free = self._size - len(self._going)
        return free >= self._group or not self._going

    @property
    def _group(self) -> int:
        return max(1, self._size // _SHARE)

    def _fetch(self, inbox: Inbox) -> None:
        is_idle = not self._going and not self._waiting
        # As many again as there are slots, to find pictures of one shape among them.
        self._waiting += inbox.take(2 * self._size - len(self._waiting), waits=is_idle)

    def _let_in(self, step: SlotStep) -> bool:
        """Prefill some of what waits; False if the slots are to be made anew."""
        tickets = self._choose_waiting(min(self._group, self._size - len(self._going)))
        try:
            with as_memory_limit(len(tickets)):
                opened = self._prefill(tickets)
        except MemoryLimitError as error:
            if not self._going:
                return self._shrink(tickets, error)
            # Those that go on will end, and leave room.
            self._size = len(self._going)
            self._waiting = tickets + self._waiting
            return True
        except Exception as error:
            _log.debug("%d prompts failed", len(tickets), exc_info=True)
            self._set_apart(tickets, error)
            return True
        try:
            with as_memory_limit(len(self._going) + len(tickets)):
                self._admit(step, opened)
        except MemoryLimitError as error:
            return self._shrink(tickets, error)
        return True

    def _choose_waiting(self, most: int) -> list[Ticket]:
        """Take up to *most* tickets, which are prefilled together, from those that wait."""
        if self._waiting[0].is_apart:
            most = 1
        chosen = alike([ticket.prepared for ticket in self._waiting], most)
        tickets = [self._waiting[index] for index in chosen]
        self._waiting = [t for index, t in enumerate(self._waiting) if index not in set(chosen)]
        return tickets

    def _set_apart(self, tickets: list[Ticket], error: Exception) -> None:
        """Let those of a group that failed try again alone; who did so already has failed."""
        if len(tickets) == 1:
            self._deliver(tickets[0], error)
            return
        for ticket in tickets:
            ticket.is_apart = True
        self._waiting = tickets + self._waiting

    def _prefill(self, tickets: Sequence[Ticket]) -> _Opened:
        started = time.perf_counter()
        model, family = self._inference.loaded.model, self._inference.loaded.family
        rows, prompt = self._inference.begin([t.prepared for t in tickets], self._flag)
        cache, output = new_cache(), None
        if prompt is not None:
            output = prefill(model, family, prompt, cache, cancel=self._flag)
        if output is None:
            finish_all(rows, "cancelled")
        else:
            logits = output.logits[:, -1]
            choose(logits, banned_of(family, logits.device), family.stop_ids, rows)
        prefilled = time.perf_counter()
        going = [
            _Going(ticket, row, prefilled - started, prefilled)
            for ticket, row in zip(tickets, rows, strict=True)
        ]
        return _Opened(going, None if output is None else prompt, cache)

    def _admit(self, step: SlotStep, opened: _Opened) -> None:
        if opened.prompt is None:
            self._end(opened.going)
            return
        inputs, sight = opened.prompt.inputs, opened.prompt.sight
        extra = self._inference.loaded.family.next_inputs(inputs, sight)
        step.slots.admit(opened.cache, inputs["attention_mask"], extra, releases=True)
        self._going += opened.going
        self._drop_ended(step)

    def _advance(self, step: SlotStep) -> bool:
        """Run one token of every row; False if the slots are to be made anew."""
        family = self._inference.loaded.family
        rows = [going.row for going in self._going]
        try:
            with as_memory_limit(len(rows)):
                logits = step([row.tokens[-1] for row in rows])
                choose(logits, banned_of(family, logits.device), family.stop_ids, rows)
        except MemoryLimitError as error:
            return self._shrink([], error)
        except Exception:
            _log.debug("%d replies failed", len(rows), exc_info=True)
            for ticket in self._take_back():
                self._answer([ticket])
            return False
        self._drop_ended(step)
        return True

    def _drop_ended(self, step: SlotStep) -> None:
        kept = kept_in_order([going.row.finish is not None for going in self._going])
        if len(kept) < len(self._going):
            ended = [going for going in self._going if going.row.finish]
            step.keep(kept)
            self._going = [self._going[index] for index in kept]
            self._end(ended)

    def _end_all(self, cancelled: Sequence[_Going]) -> None:
        finish_all([going.row for going in cancelled], "cancelled")
        self._end(cancelled)

    def _end(self, ended: Sequence[_Going]) -> None:
        now = time.perf_counter()
        for going in ended:
            answer = Answer([going.row], 0, going.prefill_seconds, now - going.prefilled)
            self._deliver(going.ticket, answer)

    def _shrink(self, tickets: list[Ticket], error: MemoryLimitError) -> bool:
        """Begin again with fewer slots, or give up what does not fit alone; False."""
        again = self._take_back()
        count = len(tickets) + len(again)
        self._inference.drop()
        if count > 1:
            self._size = max(1, count // 2)
            self._waiting = again + tickets + self._waiting
        else:
            for ticket in tickets + again:
                self._deliver(ticket, error)
        return False

    def _take_back(self) -> list[Ticket]:
        tickets = sorted((going.ticket for going in self._going), key=lambda ticket: ticket.index)
        self._going = []
        return tickets

    def _new_step(self) -> SlotStep:
        loaded = self._inference.loaded
        slots = self._inference.take_slots(self._size)
        return SlotStep(loaded.model, loaded.family, slots, graphs=self._inference.graphs)

    @property
    def _flag(self) -> Flag:
        if self._cancel is None:
            raise RuntimeError("nothing is served")
        return self._cancel

    def _serve_batches(self, inbox: Inbox, cancel: Flag) -> None:
        """Answer in batches, where rows cannot come while others go on."""
        while not cancel.is_set():
            self._fetch(inbox)
            if not self._waiting:
                return
            self._answer(self._choose_waiting(self._size))

    def _answer(self, tickets: Sequence[Ticket]) -> None:
        """Answer *tickets* as one batch, or, if that fails, in halves down to each alone."""
        told: set[int] = set()
        started = time.perf_counter()

        def on_token(rows: Sequence[Row]) -> None:
            for ticket, row in zip(tickets, rows, strict=True):
                if row.finish and ticket.index not in told:
                    told.add(ticket.index)
                    # What the prompt took is not known before all have ended.
                    self._deliver(ticket, Answer([row], 0, 0.0, time.perf_counter() - started))

        try:
            answer = self._inference.answer([t.prepared for t in tickets], self._flag, on_token)
        except Exception as error:
            _log.debug("a batch of %d failed", len(tickets), exc_info=True)
            self._answer_parts([t for t in tickets if t.index not in told], len(tickets), error)
            return
        # Cancelled before the first token.
        for ticket, row in zip(tickets, answer.rows, strict=True):
            if ticket.index not in told:
                self._deliver(ticket, Answer([row], 0, answer.prefill_seconds, 0.0))

    def _answer_parts(self, rest: Sequence[Ticket], tried: int, error: Exception) -> None:
        """Answer what is left of a batch of *tried* that failed in halves, if it was no single."""
        if tried == 1:
            for ticket in rest:
                self._deliver(ticket, error)
            return
        half = tried // 2
        if isinstance(error, MemoryLimitError):
            self._size = half
        for part in (rest[:half], rest[half:]):
            if part:
                self._answer(part)
