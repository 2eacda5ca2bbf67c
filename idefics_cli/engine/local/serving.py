"""Continuous batching: when a reply ends, the next request takes its slot."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from transformers import Cache

from idefics_cli.core.errors import MemoryLimitError, PromptError
from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.decode.sampling import BatchRow, banned_of, finish_all
from idefics_cli.engine.local.decode.slots import Slots, rows_to_keep
from idefics_cli.engine.local.decode.steps import SlotStep
from idefics_cli.engine.local.decode.token_loop import BatchDecoder
from idefics_cli.engine.local.inference import BatchAnswer, Inference
from idefics_cli.engine.local.memory import as_memory_limit, error_summary
from idefics_cli.engine.local.prompt.prefill import Prompt
from idefics_cli.engine.local.scheduling import RequestSchedule, Ticket
from idefics_cli.models.families.kv_cache import growing_cache

_log = logging.getLogger(__name__)
# Maximum number of requests whose pictures are encoded before a slot is free. The features of eight
# split pictures of Idefics3 take 0.2 GB, nearly as much as the feature cache holds.
_AHEAD = 8

Outcome = BatchAnswer | Exception
"""The answer to one request, with its share of the seconds, or the error of the request."""


class Inbox(Protocol):
    """The queue of new requests."""

    def take_tickets(self, *, waits: bool) -> list[Ticket]:
        """Return the new requests.

        Args:
            waits: Whether to wait for a request. The result is then empty only if no more requests
                will come.
        """
        ...


@dataclass(slots=True)
class _ActiveReply:
    """A reply while it is generated, with its share of the time of all active replies."""

    ticket: Ticket
    row: BatchRow
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def answer(self) -> BatchAnswer:
        return BatchAnswer([self.row], 0, self.prefill_seconds, self.decode_seconds)


@dataclass(frozen=True, slots=True)
class _Decoding:
    """The slots that hold the active replies, and the decoder that gives them tokens."""

    slots: Slots
    decoder: BatchDecoder


@dataclass(frozen=True, slots=True)
class _Prefilled:
    """Replies after the prefill of their prompts; `prompt` is None when cancelled."""

    replies: list[_ActiveReply]
    prompt: Prompt | None
    cache: Cache


class Server:
    """Answers requests as slots become free. The inference thread owns it.

    Args:
        inference: Runs the model.
        schedule: An empty schedule.
        deliver: Called with the outcome of each request as soon as it ended.
    """

    def __init__(
        self,
        inference: Inference,
        schedule: RequestSchedule,
        deliver: Callable[[Ticket, Outcome], None],
    ) -> None:
        self._inference = inference
        self._schedule = schedule
        self._on_outcome = deliver
        self._active: list[_ActiveReply] = []
        self._cancel: Flag | None = None
        self._has_warned = False

    @torch.inference_mode()
    def serve(self, inbox: Inbox, cancel: Flag) -> None:
        """Answer the requests of *inbox* until no more will come, or *cancel* is set."""
        self._cancel = cancel
        try:
            if self._inference.slots_problem is None:
                self._serve_slots(inbox, cancel)
            else:
                self._serve_batches(inbox, cancel)
        finally:
            self._inference.release_slots()

    def _serve_slots(self, inbox: Inbox, cancel: Flag) -> None:
        decoding = self._new_decoding()
        while not cancel.is_set():
            self._fetch_tickets(inbox)
            if tickets := self._schedule.choose(len(self._active)):
                is_intact = self._start_replies(decoding, tickets)
            elif self._active:
                is_intact = self._advance(decoding)
            else:
                return
            if not is_intact:
                decoding = self._new_decoding()
        finish_all(self._rows, "cancelled")
        self._end_replies(self._active)

    def _fetch_tickets(self, inbox: Inbox) -> None:
        is_idle = not self._active and self._schedule.is_empty
        self._schedule.add(inbox.take_tickets(waits=is_idle))

    def _start_replies(self, decoding: _Decoding, tickets: list[Ticket]) -> bool:
        """Prefill *tickets* and admit them to the slots.

        Returns:
            False if the slots are lost, so that new ones are needed.
        """
        try:
            with as_memory_limit(len(tickets)):
                prefilled = self._prefill(tickets)
        except MemoryLimitError as error:
            # The failed prefill did not touch the slots, so the active replies go on.
            return self._retry_with_fewer(tickets, error, active=len(self._active))
        except Exception as error:
            self._log_failure(len(tickets), error)
            self._retry_singly(tickets, error, tried=len(tickets))
            return True
        try:
            with as_memory_limit(len(self._active) + len(tickets)):
                self._admit(decoding, prefilled)
        except MemoryLimitError as error:
            return self._retry_with_fewer(self._take_back(tickets), error)
        except Exception as error:
            return self._answer_singly(error, tickets)
        return True

    def _prefill(self, tickets: Sequence[Ticket]) -> _Prefilled:
        """Run the prompts of *tickets* through the model, and choose the first tokens."""
        started = time.perf_counter()
        rows, prompt = self._inference.start_batch([t.prepared for t in tickets], self._flag)
        cache, scores = growing_cache(), None
        if prompt is not None:
            scores = self._inference.new_loop().prefill(prompt, cache, cancel=self._flag)
        if scores is None:
            finish_all(rows, "cancelled")
        else:
            scores.choose_tokens(rows)
        share = (time.perf_counter() - started) / len(tickets)
        replies = [_ActiveReply(t, row, share) for t, row in zip(tickets, rows, strict=True)]
        return _Prefilled(replies, None if scores is None else prompt, cache)

    def _admit(self, decoding: _Decoding, prefilled: _Prefilled) -> None:
        if prefilled.prompt is None:
            self._end_replies(prefilled.replies)
            return
        decoding.decoder.settle(self._rows)
        inputs, image_features = prefilled.prompt.inputs, prefilled.prompt.image_features
        extra = self._inference.loaded.family.next_inputs(inputs, image_features)
        decoding.slots.admit_rows(prefilled.cache, inputs["attention_mask"], extra, releases=True)
        self._active += prefilled.replies
        self._drop_ended(decoding)

    def _advance(self, decoding: _Decoding) -> bool:
        """Give every active reply a token; return False if the slots are lost by an error."""
        started = time.perf_counter()
        self._look_ahead()
        rows = self._rows
        try:
            with as_memory_limit(len(rows)):
                decoding.decoder.advance(rows)
        except MemoryLimitError as error:
            return self._retry_with_fewer(self._take_back(), error)
        except Exception as error:
            return self._answer_singly(error)
        for reply in self._active:
            reply.decode_seconds += (time.perf_counter() - started) / len(rows)
        self._drop_ended(decoding)
        return True

    def _look_ahead(self) -> None:
        look_ahead = self._inference.look_ahead
        if look_ahead.can_start and (upcoming := self._schedule.upcoming()[:_AHEAD]):
            look_ahead.start_encoding([ticket.prepared for ticket in upcoming], self._flag)

    def _drop_ended(self, decoding: _Decoding) -> None:
        kept = rows_to_keep([row.finish is not None for row in self._rows])
        if len(kept) < len(self._active):
            ended = [reply for reply in self._active if reply.row.finish]
            decoding.decoder.keep_rows(kept)
            self._active = [self._active[index] for index in kept]
            self._end_replies(ended)

    def _end_replies(self, ended: Sequence[_ActiveReply]) -> None:
        for reply in ended:
            self._deliver(reply.ticket, reply.answer)

    def _deliver(self, ticket: Ticket, outcome: Outcome) -> None:
        self._schedule.end(ticket, fits=not isinstance(outcome, MemoryLimitError))
        self._on_outcome(ticket, outcome)

    def _retry_singly(self, tickets: Sequence[Ticket], error: Exception, *, tried: int) -> None:
        if (failed := self._schedule.retry_singly(tickets, tried=tried)) is not None:
            self._deliver(failed, error)

    def _retry_with_fewer(
        self, tickets: Sequence[Ticket], error: MemoryLimitError, *, active: int = 0
    ) -> bool:
        """Put *tickets* back and halve the number of slots.

        Returns:
            True if *active* replies go on in their slots; False if the slots were dropped.
        """
        failed = self._schedule.retry_with_fewer(tickets, active=active)
        if active:
            return True
        self._inference.drop_caches()
        if failed is not None:
            self._deliver(failed, error)
        return False

    def _answer_singly(self, error: Exception, others: Sequence[Ticket] = ()) -> Literal[False]:
        """Answer all active requests and *others* one by one, because they failed together."""
        tickets = self._take_back(others)
        self._log_failure(len(tickets), error)
        for ticket in tickets:
            self._answer([ticket])
        return False

    def _log_failure(self, count: int, error: Exception) -> None:
        """Warn once that requests are answered one by one after *error*."""
        # One failed request, or an error in its prompt, is an outcome and needs no warning.
        if count < 2 or isinstance(error, PromptError) or self._has_warned:
            _log.debug("%d requests failed", count, exc_info=error)
            return
        self._has_warned = True
        _log.warning(
            "answering %d requests one by one, because they failed together: %s",
            count,
            error_summary(error),
        )

    def _take_back(self, others: Sequence[Ticket] = ()) -> list[Ticket]:
        """Remove the active replies; return their tickets and *others*, each once."""
        tickets = [*(reply.ticket for reply in self._active), *others]
        self._active = []
        return list({ticket.index: ticket for ticket in tickets}.values())

    def _new_decoding(self) -> _Decoding:
        loaded = self._inference.loaded
        slots = self._inference.take_slots(self._schedule.slots)
        step = SlotStep(loaded.model, loaded.family, slots, graphs=self._inference.graphs)
        return _Decoding(slots, BatchDecoder(step, banned_of(loaded.family, loaded.model.device)))

    @property
    def _rows(self) -> list[BatchRow]:
        return [reply.row for reply in self._active]

    @property
    def _flag(self) -> Flag:
        if self._cancel is None:
            raise RuntimeError("`serve` is not running")
        return self._cancel

    def _serve_batches(self, inbox: Inbox, cancel: Flag) -> None:
        """Answer in batches, for a model that cannot decode in slots."""
        while not cancel.is_set():
            self._fetch_tickets(inbox)
            tickets = self._schedule.choose(0)
            if not tickets:
                return
            self._answer(tickets)

    def _answer(self, tickets: Sequence[Ticket]) -> None:
        """Answer *tickets* as one batch; if it fails, put back the tickets that have not ended."""
        batch = _Batch(tickets, self._deliver)
        try:
            answer = self._inference.answer(
                [t.prepared for t in tickets], self._flag, batch.on_token
            )
        except MemoryLimitError as error:
            self._retry_with_fewer(batch.rest, error)
        except Exception as error:
            self._log_failure(len(tickets), error)
            self._retry_singly(batch.rest, error, tried=len(tickets))
        else:
            # If the batch was cancelled before its first token, nothing has called `on_token` yet.
            batch.on_token(answer.rows)


@dataclass(slots=True)
class _Batch:
    """Requests that are answered as a batch; each reply is delivered when its row ends."""

    tickets: Sequence[Ticket]
    deliver: Callable[[Ticket, Outcome], None]
    seconds: float = 0.0
    last_time: float = field(default_factory=time.perf_counter)
    delivered: set[int] = field(default_factory=set)

    @property
    def rest(self) -> list[Ticket]:
        """The tickets that have not ended."""
        return [ticket for ticket in self.tickets if ticket.index not in self.delivered]

    def on_token(self, rows: Sequence[BatchRow]) -> None:
        now, count = time.perf_counter(), len(self.rest)
        # `Inference.answer` returns the time of the prompts only when all replies have ended. So
        # the time of the prompts counts as decoding here.
        self.seconds += (now - self.last_time) / max(1, count)
        self.last_time = now
        for ticket, row in zip(self.tickets, rows, strict=True):
            if row.finish and ticket.index not in self.delivered:
                self.delivered.add(ticket.index)
                self.deliver(ticket, BatchAnswer([row], 0, 0.0, self.seconds))
