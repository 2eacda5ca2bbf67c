"""Admission: which of the waiting requests start now, within the memory for KV states."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.core.units import format_size
from idefics_cli.engine.local.kv_budget import KvLoad
from idefics_cli.engine.local.serving.delivery import Delivery
from idefics_cli.engine.local.serving.prompt_run import PromptRun
from idefics_cli.engine.local.serving.requests import Lane, OpenRequest
from idefics_cli.engine.local.serving.work import Work

# Number of interactive requests that may start before a batch request that waits for memory. Then
# the batch request comes first, so that it does not wait for ever.
_MOST_PASSED = 8


class Admission:
    """Starts the requests of all lanes that fit into the memory, interactive ones first.

    Args:
        work: All requests: those that wait in lanes, and those that run.
        delivery: Gives an error to requests that can never start.
    """

    def __init__(self, work: Work, delivery: Delivery) -> None:
        self._work = work
        self._inference = work.inference
        self._delivery = delivery

    def start_requests(self) -> None:
        """Start what fits now."""
        isolated = [r for lane in self._work.lanes for r in lane.schedule.waiting if r.is_isolated]
        if any(r.is_isolated for r in self._work.running()):
            return
        if isolated:
            # An isolated request starts when all running ones have ended. No other request starts
            # before it.
            if self._work.is_idle:
                isolated[0].lane.schedule.remove(isolated[:1])
                self._start_group(isolated[0].lane, isolated[:1])
            return
        for lane in self._lanes_in_order():
            if not self._may_start(lane):
                continue
            group = self._choose(lane)
            if group:
                self._start_group(lane, group)
            elif lane.passed >= _MOST_PASSED and lane.has_room:
                # This lane waits for memory, and `_MOST_PASSED` interactive requests started before
                # it. So no other lane may start a request first.
                return

    def _lanes_in_order(self) -> list[Lane]:
        def order(lane: Lane) -> int:
            is_starving = lane.passed >= _MOST_PASSED and lane.has_room
            return 0 if is_starving else 1 if lane.urgency == "interactive" else 2

        return sorted(self._work.lanes, key=order)

    def _may_start(self, lane: Lane) -> bool:
        if self._inference.slots_problem is not None:
            return not self._work.runs and not self._work.rows
        # At most one prompt run of each urgency is active. Further runs would need more memory and
        # gain nothing.
        return all(run.requests[0].lane.urgency != lane.urgency for run in self._work.runs)

    def _choose(self, lane: Lane) -> Sequence[OpenRequest]:
        """Take the requests of *lane* that start now, and end those that can never fit."""
        schedule = lane.schedule
        while not schedule.is_empty:
            waits_whole = lane.starts_whole and not any(r.is_single for r in schedule.waiting)
            if waits_whole and self._fits(schedule.waiting):
                return schedule.take_all()
            if not waits_whole and (group := schedule.choose(lane.active, self._fits)):
                return group
            if not self._work.is_idle:
                return ()
            # The engine is idle, so no other request takes memory. Requests that do not fit now
            # never will.
            for request in list(schedule.waiting if waits_whole else schedule.waiting[:1]):
                schedule.remove([request])
                self._delivery.end(request, self._too_large(request))
        return ()

    def _start_group(self, lane: Lane, group: Sequence[OpenRequest]) -> None:
        uses_prefix = len(group) == 1 and lane.urgency == "interactive"
        lane.active += len(group)
        lane.passed = 0
        for request in group:
            request.has_started = True
        if lane.urgency == "interactive":
            for other in self._work.lanes:
                other.passed += other.urgency == "batch" and other.has_room
        self._work.runs.append(PromptRun(self._inference, group, uses_prefix=uses_prefix))
        self.keep_to_budget()

    def _fits(self, group: Sequence[OpenRequest]) -> bool:
        return self._inference.kv_budget.fits(self._work.load(group))

    def keep_to_budget(self) -> None:
        """Shrink the buffers and drop kept conversations to make room for the running requests."""
        budget, load, rows = self._inference.kv_budget, self._work.load(), self._work.rows
        rows.shrink_to(budget.buffer_size(load, self._work.wanted_rows()))
        left = budget.left_bytes(load, rows.held_bytes)
        self._inference.prefix.shrink_to(left, at_least=0)
        self._inference.shared.shrink_to(left, at_least=0)

    def _too_large(self, request: OpenRequest) -> MemoryLimitError:
        budget = self._inference.kv_budget
        load = KvLoad((), [(1, request.tokens)], [request.longest])
        return MemoryLimitError(
            f"the prompt of {len(request.reply.prompt)} tokens and a reply of up to"
            f" {request.reply.limit} need {format_size(budget.needed_bytes(load))} of KV cache,"
            f" and there are {format_size(budget.max_bytes)}",
            hint="try a smaller `--max-new-tokens`, fewer images, or `--no-splitting`",
        )
