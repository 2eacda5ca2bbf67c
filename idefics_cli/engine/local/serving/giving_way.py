"""The return of running requests to their lanes, after the memory ran out or a forward failed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from idefics_cli.core.errors import MemoryLimitError, PromptError
from idefics_cli.engine.local.memory import error_summary
from idefics_cli.engine.local.serving.delivery import Delivery
from idefics_cli.engine.local.serving.requests import Lane, OpenRequest
from idefics_cli.engine.local.serving.work import Work

_log = logging.getLogger(__name__)


class GivingWay:
    """Puts running requests back into their lanes, so that they continue later.

    A request keeps the tokens of its reply, and continues after the last one.

    Args:
        work: All requests: those that wait in lanes, and those that run.
        delivery: Gives an error to requests that fail for good.
    """

    def __init__(self, work: Work, delivery: Delivery) -> None:
        self._work = work
        self._inference = work.inference
        self._delivery = delivery
        # The warnings that were given. A warning that is in this set is not given again.
        self._warned: set[str] = set()

    def give_way(self, requests: Sequence[OpenRequest], error: MemoryLimitError) -> None:
        """Put *requests* back, because the memory ran out while they ran."""
        rest = self._take_back(requests)
        kept = self._inference.has_kept and not all(r.has_dropped_caches for r in rest)
        self._inference.drop_caches(keeps_slots=len(self._work.rows) > 0)
        if kept:
            self._warn(
                "what was kept for later requests is dropped, because the memory ran out: %s",
                _cause(error),
            )
            for request in rest:
                request.has_dropped_caches = True
            self._put_back(rest)
            return
        batch = [r for r in rest if r.lane.urgency == "batch"]
        if batch and len(batch) < len(rest):
            # Only the lanes of batch requests get fewer slots, which frees memory. The interactive
            # requests wait again, and then get this memory.
            self._put_back([r for r in rest if r.lane.urgency != "batch"])
            rest = batch
        for lane in dict.fromkeys(r.lane for r in rest):
            self._retry_with_fewer(lane, [r for r in rest if r.lane is lane], error)

    def _retry_with_fewer(
        self, lane: Lane, requests: list[OpenRequest], error: MemoryLimitError
    ) -> None:
        is_alone = self._work.is_idle
        if lane.starts_whole:
            failed = requests if is_alone else []
            if not is_alone:
                self._warn(
                    "answering requests one by one, because the memory ran out: %s", _cause(error)
                )
                self._isolate_requests(requests)
        else:
            found = lane.schedule.retry_with_fewer(requests, active=lane.active)
            # No warning is needed for a session: its owner watches the number of slots, and tells
            # the user.
            if found is None and lane.on_stop is None:
                self._warn(
                    "answering fewer requests at a time, because the memory ran out: %s",
                    _cause(error),
                )
            failed = [] if found is None else [found]
            if not is_alone:
                self._isolate_requests(failed)
                failed = []
        for request in failed:
            self._delivery.end(request, error)

    def retry_singly(self, requests: Sequence[OpenRequest], error: Exception) -> None:
        """Put *requests* back after their common prefill failed; each then starts alone."""
        self._log_failure(len(requests), error)
        rest = self._take_back(requests)
        if not rest:
            return
        failed = rest[0].lane.schedule.retry_singly(rest, tried=len(requests))
        if failed is not None:
            self._delivery.end(failed, error)

    def isolate(self, requests: Sequence[OpenRequest], error: Exception) -> None:
        """Put *requests* back after one of them made a decode step fail; each then runs alone."""
        self._log_failure(len(requests), error)
        rest = self._take_back(requests)
        if len(requests) > 1:
            self._isolate_requests(rest)
            return
        for request in rest:
            self._delivery.end(request, error)
        # The request that failed alone caused the failure. So the others may run together again.
        for lane in self._work.lanes:
            for request in lane.schedule.waiting:
                request.is_isolated = False

    def _isolate_requests(self, requests: Sequence[OpenRequest]) -> None:
        for request in requests:
            request.is_isolated = True
        self._put_back(requests)

    def _take_back(self, requests: Sequence[OpenRequest]) -> list[OpenRequest]:
        """Return those of *requests* that have not ended; end the others."""
        ended = [request for request in requests if request.reply.finish]
        self._delivery.end_all(ended)
        rest = [request for request in requests if not request.reply.finish]
        for request in rest:
            request.lane.active -= 1
        return rest

    def _put_back(self, requests: Sequence[OpenRequest]) -> None:
        for lane in dict.fromkeys(r.lane for r in requests):
            lane.schedule.put_back([r for r in requests if r.lane is lane])

    def _log_failure(self, count: int, error: Exception) -> None:
        """Warn once that requests are answered one by one after *error*."""
        # A PromptError concerns only its own request, so it is no reason for this warning.
        if count < 2 or isinstance(error, PromptError):
            _log.debug("%d requests failed", count, exc_info=error)
            return
        self._warn(
            "answering %d requests one by one, because they failed together: %s",
            count,
            error_summary(error),
        )

    def _warn(self, message: str, *values: object) -> None:
        if message in self._warned:
            _log.debug(message, *values)
            return
        self._warned.add(message)
        _log.warning(message, *values)


def _cause(error: MemoryLimitError) -> str:
    """Return what torch or Python said, for a log."""
    return error_summary(error.__cause__ or error)
