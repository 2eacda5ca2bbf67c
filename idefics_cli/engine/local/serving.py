"""Many requests through a few slots: as one reply ends, the next request takes its place."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from transformers import Cache

from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.decode.sampling import BatchRow, Scores, banned_of, finish_all
from idefics_cli.engine.local.decode.slots import Slots, kept_in_order
from idefics_cli.engine.local.decode.steps import SlotStep
from idefics_cli.engine.local.decode.token_loop import BatchDecoder
from idefics_cli.engine.local.inference import BatchAnswer, Inference
from idefics_cli.engine.local.memory import as_memory_limit
from idefics_cli.engine.local.prompt.prefill import Prompt, prefill
from idefics_cli.engine.local.scheduling import RequestSchedule, Ticket
from idefics_cli.models.families.kv_cache import growing_cache

_log = logging.getLogger(__name__)
# Most requests whose pictures are encoded while others are answered: of Idefics3, split, they
# are 0.2 GB, which is nearly what is kept of pictures.
_AHEAD = 8

Outcome = BatchAnswer | Exception
"""An answer of one row, with its share of the seconds, or what made its request fail alone."""


class Inbox(Protocol):
    """Where requests come from."""

    def take(self, *, waits: bool) -> list[Ticket]:
        """Return those that are here; if it *waits*, none only when no more will come."""
        ...


@dataclass(slots=True)
class _Going:
    """A reply in the making, and its share of the time."""

    ticket: Ticket
    row: BatchRow
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def answer(self) -> BatchAnswer:
        return BatchAnswer([self.row], 0, self.prefill_seconds, self.decode_seconds)


@dataclass(frozen=True, slots=True)
class _Works:
    """What holds the replies that go on, and what gives them their tokens."""

    slots: Slots
    decoder: BatchDecoder


@dataclass(slots=True)
class _Opened:
    """Replies whose prompts are computed; no prompt when cancelled."""

    going: list[_Going]
    prompt: Prompt | None
    cache: Cache


class Server:
    """Answers requests as slots get free; belongs to the thread of the inference.

    Args:
        inference: Of the model.
        schedule: Of the requests; nothing waits yet.
        deliver: Told of each request's outcome, as soon as it ended.
    """

    def __init__(
        self,
        inference: Inference,
        schedule: RequestSchedule,
        deliver: Callable[[Ticket, Outcome], None],
    ) -> None:
        self._inference = inference
        self._schedule = schedule
        self._tell = deliver
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
        works = self._new_works()
        while not cancel.is_set():
            self._fetch(inbox)
            if tickets := self._schedule.choose(len(self._going)):
                is_fine = self._let_in(works, tickets)
            elif self._going:
                is_fine = self._advance(works)
            else:
                return
            if not is_fine:
                works = self._new_works()
        finish_all(self._rows, "cancelled")
        self._end(self._going)

    def _fetch(self, inbox: Inbox) -> None:
        is_idle = not self._going and self._schedule.is_empty
        self._schedule.add(inbox.take(waits=is_idle))

    def _let_in(self, works: _Works, tickets: list[Ticket]) -> bool:
        """Prefill *tickets*; False if the slots are to be made anew."""
        try:
            with as_memory_limit(len(tickets)):
                opened = self._prefill(tickets)
        except MemoryLimitError as error:
            # Those that go on keep what they have.
            return self._run_short(tickets, error, going=len(self._going))
        except Exception as error:
            _log.debug("%d prompts failed", len(tickets), exc_info=True)
            self._set_apart(tickets, error, tried=len(tickets))
            return True
        try:
            with as_memory_limit(len(self._going) + len(tickets)):
                self._admit(works, opened)
        except MemoryLimitError as error:
            return self._run_short(self._take_back(tickets), error)
        except Exception:
            return self._answer_alone(tickets)
        return True

    def _prefill(self, tickets: Sequence[Ticket]) -> _Opened:
        started = time.perf_counter()
        model, family = self._inference.loaded.model, self._inference.loaded.family
        rows, prompt = self._inference.begin([t.prepared for t in tickets], self._flag)
        cache, output = growing_cache(), None
        if prompt is not None:
            output = prefill(model, family, prompt, cache, cancel=self._flag)
        if output is None:
            finish_all(rows, "cancelled")
        else:
            logits = output.logits[:, -1]
            Scores(logits, banned_of(family, logits.device)).choose(rows, family.stop_ids)
        share = (time.perf_counter() - started) / len(tickets)
        going = [_Going(ticket, row, share) for ticket, row in zip(tickets, rows, strict=True)]
        return _Opened(going, None if output is None else prompt, cache)

    def _admit(self, works: _Works, opened: _Opened) -> None:
        if opened.prompt is None:
            self._end(opened.going)
            return
        works.decoder.settle(self._rows)
        inputs, image_features = opened.prompt.inputs, opened.prompt.image_features
        extra = self._inference.loaded.family.next_inputs(inputs, image_features)
        works.slots.admit(opened.cache, inputs["attention_mask"], extra, releases=True)
        self._going += opened.going
        self._drop_ended(works)

    def _advance(self, works: _Works) -> bool:
        """Give every row a token; False if the slots are to be made anew."""
        started = time.perf_counter()
        self._look_ahead()
        rows = self._rows
        try:
            with as_memory_limit(len(rows)):
                works.decoder.advance(rows)
        except MemoryLimitError as error:
            return self._run_short(self._take_back(), error)
        except Exception:
            return self._answer_alone()
        for going in self._going:
            going.decode_seconds += (time.perf_counter() - started) / len(rows)
        self._drop_ended(works)
        return True

    def _look_ahead(self) -> None:
        if not self._inference.can_look_ahead:
            return
        if upcoming := self._schedule.upcoming()[:_AHEAD]:
            self._inference.look_ahead([ticket.prepared for ticket in upcoming], self._flag)

    def _drop_ended(self, works: _Works) -> None:
        kept = kept_in_order([row.finish is not None for row in self._rows])
        if len(kept) < len(self._going):
            ended = [going for going in self._going if going.row.finish]
            works.decoder.keep(kept)
            self._going = [self._going[index] for index in kept]
            self._end(ended)

    def _end(self, ended: Sequence[_Going]) -> None:
        for going in ended:
            self._deliver(going.ticket, going.answer)

    def _deliver(self, ticket: Ticket, outcome: Outcome) -> None:
        self._schedule.end(ticket, fits=not isinstance(outcome, MemoryLimitError))
        self._tell(ticket, outcome)

    def _set_apart(self, tickets: Sequence[Ticket], error: Exception, *, tried: int) -> None:
        if (failed := self._schedule.set_apart(tickets, tried=tried)) is not None:
            self._deliver(failed, error)

    def _run_short(
        self, tickets: Sequence[Ticket], error: MemoryLimitError, *, going: int = 0
    ) -> bool:
        """Let *tickets* begin again with fewer at a time; False if in slots that are new."""
        failed = self._schedule.run_short(tickets, going=going)
        if going:
            return True
        self._inference.drop()
        if failed is not None:
            self._deliver(failed, error)
        return False

    def _answer_alone(self, others: Sequence[Ticket] = ()) -> Literal[False]:
        """Answer all that go on, and *others*, one by one: one of them failed."""
        tickets = self._take_back(others)
        _log.debug("%d replies failed", len(tickets), exc_info=True)
        for ticket in tickets:
            self._answer([ticket])
        return False

    def _take_back(self, others: Sequence[Ticket] = ()) -> list[Ticket]:
        """Return the tickets of all that go on, and *others*, which may be among them."""
        tickets = [*(going.ticket for going in self._going), *others]
        self._going = []
        return list({ticket.index: ticket for ticket in tickets}.values())

    def _new_works(self) -> _Works:
        loaded = self._inference.loaded
        slots = self._inference.take_slots(self._schedule.slots)
        step = SlotStep(loaded.model, loaded.family, slots, graphs=self._inference.graphs)
        banned = banned_of(loaded.family, loaded.model.device)
        return _Works(slots, BatchDecoder(step, loaded.family, banned))

    @property
    def _rows(self) -> list[BatchRow]:
        return [going.row for going in self._going]

    @property
    def _flag(self) -> Flag:
        if self._cancel is None:
            raise RuntimeError("nothing is served")
        return self._cancel

    def _serve_batches(self, inbox: Inbox, cancel: Flag) -> None:
        """Answer in batches, where rows cannot come while others go on."""
        while not cancel.is_set():
            self._fetch(inbox)
            tickets = self._schedule.choose(0)
            if not tickets:
                return
            self._answer(tickets)

    def _answer(self, tickets: Sequence[Ticket]) -> None:
        """Answer *tickets* as one batch; if that fails, those that have not ended wait again."""
        batch = _Batch(tickets, self._deliver)
        try:
            answer = self._inference.answer(
                [t.prepared for t in tickets], self._flag, batch.on_token
            )
        except MemoryLimitError as error:
            self._run_short(batch.rest, error)
        except Exception as error:
            _log.debug("a batch of %d failed", len(tickets), exc_info=True)
            self._set_apart(batch.rest, error, tried=len(tickets))
        else:
            # Cancelled before the first token.
            batch.on_token(answer.rows)


@dataclass(slots=True)
class _Batch:
    """Requests that are answered as a batch, whose rows are told as they end."""

    tickets: Sequence[Ticket]
    deliver: Callable[[Ticket, Outcome], None]
    seconds: float = 0.0
    looked: float = field(default_factory=time.perf_counter)
    told: set[int] = field(default_factory=set)

    @property
    def rest(self) -> list[Ticket]:
        """Those that have not ended."""
        return [ticket for ticket in self.tickets if ticket.index not in self.told]

    def on_token(self, rows: Sequence[BatchRow]) -> None:
        now, count = time.perf_counter(), len(self.rest)
        # What the prompt took is not known before all have ended.
        self.seconds += (now - self.looked) / max(1, count)
        self.looked = now
        for ticket, row in zip(self.tickets, rows, strict=True):
            if row.finish and ticket.index not in self.told:
                self.told.add(ticket.index)
                self.deliver(ticket, BatchAnswer([row], 0, 0.0, self.seconds))
