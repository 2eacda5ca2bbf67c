"""The loop of the inference thread: which request gets the next forward of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock

import torch

from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.memory import as_memory_limit
from idefics_cli.engine.local.serving.admission import Admission
from idefics_cli.engine.local.serving.delivery import Delivery, tell
from idefics_cli.engine.local.serving.giving_way import GivingWay
from idefics_cli.engine.local.serving.prompt_run import PromptRun
from idefics_cli.engine.local.serving.requests import Lane, OpenRequest
from idefics_cli.engine.local.serving.work import Work
from idefics_cli.models.families.kv_cache import cache_bytes

# Maximum number of requests whose pictures are encoded ahead. Eight split pictures of Idefics3 have
# 0.2 GB of features, nearly as much as the feature cache holds.
_AHEAD = 8
# While an interactive and a batch prompt are computed, every fourth piece is of the batch prompt.
_BATCH_TURN = 4


class Scheduler:
    """Answers the requests of all lanes in one loop, which runs while there are any.

    The loop repeats: drop what nobody wants, start what fits, run one piece of one prompt, give
    every active reply a token, and tell the listeners. Other threads may call `put`, `place_of`,
    `open_session` and `fail_waiting`; every other method belongs to the inference thread.

    Args:
        inference: Runs the model.
        closing: Set when the engine closes.
        start: Runs a function in the inference thread, soon.
    """

    def __init__(
        self,
        inference: Inference,
        *,
        closing: Flag,
        start: Callable[[Callable[[], None]], Future[None]],
    ) -> None:
        self._inference = inference
        self._start = start
        self._lock = Lock()
        self._inbox: list[Sequence[OpenRequest]] = []
        self._is_running = False
        self._sessions: list[Lane] = []
        self._turn = 0
        self._work = Work(inference, closing=closing)
        self._delivery = Delivery(inference.loaded.family)
        self._admission = Admission(self._work, self._delivery)
        self._giving_way = GivingWay(self._work, self._delivery)

    @property
    def interactive(self) -> Lane:
        """The lane of single interactive requests."""
        return self._work.interactive

    @property
    def batch(self) -> Lane:
        """The lane of single batch requests."""
        return self._work.batch

    @property
    def held_kv_bytes(self) -> int:
        """Number of bytes of all KV states: active replies, prompts, and kept conversations."""
        runs = sum(cache_bytes(run.cache) for run in self._work.runs)
        kept = self._inference.prefix.held_bytes + self._inference.shared.held_bytes
        return self._work.rows.held_bytes + runs + kept

    def put(self, requests: Sequence[OpenRequest]) -> None:
        """Add *requests* of one lane; safe in any thread.

        Raises:
            RuntimeError: If the engine is closed.
        """
        if not requests:
            return
        with self._lock:
            self._inbox.append(requests)
            if self._is_running:
                return
            self._is_running = True
        try:
            job = self._start(self._run)
        except RuntimeError:
            with self._lock:
                # The caller of *requests* gets the error itself, so the listeners of *requests*
                # must not get the same error.
                self._inbox = [group for group in self._inbox if group is not requests]
            self.fail_waiting()
            raise RuntimeError("the engine is closed") from None
        # A closing engine drops work that has not started. Its requests then get an error.
        job.add_done_callback(lambda job: self.fail_waiting() if job.cancelled() else None)

    def place_of(self, request: OpenRequest) -> int | None:
        """Return how many requests of its lane start before *request*; None if it started.

        Safe in any thread.
        """
        if request.has_started:
            return None
        with self._lock:
            behind = [each for group in self._inbox for each in group]
        waiting = [*request.lane.schedule.waiting, *(r for r in behind if r.lane is request.lane)]
        return waiting.index(request) if request in waiting else 0

    def open_session(self, lane: Lane) -> None:
        """Keep the buffers between the requests of *lane*, until it stops."""
        with self._lock:
            self._sessions.append(lane)

    def fail_waiting(self) -> None:
        """End every request that has not reached the loop with an error, because it cannot run."""
        with self._lock:
            requests, self._inbox = self._inbox, []
            self._is_running = False
        for request in (each for group in requests for each in group):
            tell(request, _closed())

    # The loop

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:
            self._fail_all(error)

    def _step(self) -> bool:
        """Do one round; return False, and end the loop, if no request is left."""
        self._fetch()
        self._drop_unwanted()
        self._admission.start_requests()
        self._advance_run()
        self._advance_rows()
        self._work.drop_closed_lanes()
        return bool(self._work.lanes) or self._goes_on()

    def _goes_on(self) -> bool:
        """Return whether new requests have arrived. If no session is open, free unused buffers."""
        with self._lock:
            self._sessions = [lane for lane in self._sessions if not lane.stop.is_set()]
            if not self._sessions:
                self._inference.release_slots()
            self._is_running = bool(self._inbox)
            return self._is_running

    def _fetch(self) -> None:
        with self._lock:
            fetched, self._inbox = self._inbox, []
        for requests in fetched:
            lane = requests[0].lane
            if lane not in self._work.lanes:
                self._work.lanes.append(lane)
            lane.schedule.add(requests)

    def _drop_unwanted(self) -> None:
        for lane in self._work.lanes:
            if lane.stop.is_set():
                self._drop_waiting(lane)
                continue
            unwanted = [r for r in lane.schedule.waiting if r.stop.is_set()]
            lane.schedule.remove(unwanted)
            for request in unwanted:
                self._delivery.end(request)
        for request in self._work.rows.requests:
            if request.stop.is_set() or request.lane.stop.is_set():
                request.reply.finish = "cancelled"
        for run in list(self._work.runs):
            if all(r.stop.is_set() or r.lane.stop.is_set() for r in run.requests):
                self._work.runs.remove(run)
                run.abandon()
                self._delivery.end_all(run.requests)
        self._end_rows()
        for lane in self._work.lanes:
            if lane.stop.is_set() and lane.on_stop is not None:
                lane.on_stop()

    def _drop_waiting(self, lane: Lane) -> None:
        waiting = lane.schedule.take_all()
        for request in [] if lane.on_stop else waiting:
            tell(request, _closed())

    # What runs

    def _advance_run(self) -> None:
        if (run := self._next_run()) is None:
            return
        requests = run.requests
        # Short pieces avoid pauses between the tokens of other replies. But long pieces are faster,
        # so pieces are short only if a person waits for another reply (an interactive request).
        has_company = any(
            request.lane.urgency == "interactive" and request not in requests
            for request in self._work.running()
        )
        try:
            with as_memory_limit(len(requests)):
                is_done = run.advance(has_company=has_company)
            if not is_done:
                return
            self._work.runs.remove(run)
        except MemoryLimitError as error:
            self._drop_run(run)
            # Only the requests of this run are put back. The active replies keep their states.
            self._giving_way.give_way(requests, error)
        except Exception as error:
            self._drop_run(run)
            self._giving_way.retry_singly(requests, error)
        else:
            self._admit(run)

    def _next_run(self) -> PromptRun | None:
        urgent = [run for run in self._work.runs if run.requests[0].lane.urgency == "interactive"]
        others = [run for run in self._work.runs if run not in urgent]
        self._turn += 1
        if others and (not urgent or self._turn % _BATCH_TURN == 0):
            return others[0]
        return urgent[0] if urgent else None

    def _drop_run(self, run: PromptRun) -> None:
        self._work.runs.remove(run)
        run.release()

    def _admit(self, run: PromptRun) -> None:
        requests = run.requests
        # A user sees the first text before the states are copied into the slots.
        for request in requests:
            self._delivery.tell_text(request)
        size = self._inference.kv_budget.buffer_size(
            self._work.load(requests), self._work.wanted_rows()
        )
        try:
            with as_memory_limit(len(self._work.rows) + len(requests)):
                self._work.rows.admit(run, size)
        except MemoryLimitError as error:
            run.release()
            self._giving_way.give_way(_each_once(self._work.rows.take_back(), requests), error)
        except Exception as error:
            run.release()
            self._giving_way.isolate(_each_once(self._work.rows.take_back(), requests), error)
        else:
            self._admission.keep_to_budget()
            self._tell_and_drop()
            for request in requests:
                request.move_features_to_ram()

    def _advance_rows(self) -> None:
        if not self._work.rows:
            return
        self._look_ahead()
        try:
            with as_memory_limit(len(self._work.rows)):
                self._work.rows.advance()
        except MemoryLimitError as error:
            self._giving_way.give_way(self._work.rows.take_back(), error)
        except Exception as error:
            self._giving_way.isolate(self._work.rows.take_back(), error)
        else:
            self._tell_and_drop()

    def _look_ahead(self) -> None:
        look_ahead = self._inference.look_ahead
        if not look_ahead.can_start:
            return
        for lane in self._work.lanes:
            if upcoming := lane.schedule.upcoming()[:_AHEAD]:
                pictures = [picture for request in upcoming for picture in request.pictures]
                look_ahead.start_encoding(pictures, lane.stop)
                return

    def _tell_and_drop(self) -> None:
        for request in self._work.rows.requests:
            self._delivery.tell_text(request)
        self._end_rows()

    def _end_rows(self) -> None:
        if ended := self._work.rows.drop_ended():
            # The states of the ended replies were kept as conversations. Some of them are dropped
            # here if running requests need the memory.
            self._admission.keep_to_budget()
            self._delivery.end_all(ended)

    def _fail_all(self, error: BaseException) -> None:
        """Give every request *error*, which is a fault of the engine itself."""
        outcome = error if isinstance(error, Exception) else RuntimeError(str(error))
        requests = self._work.clear()
        with self._lock:
            requests += [request for group in self._inbox for request in group]
            self._inbox, self._is_running = [], False
        for lane in dict.fromkeys(request.lane for request in requests):
            if lane.on_failure is not None:
                lane.on_failure(outcome)
        for request in requests:
            if request.lane.on_failure is None:
                tell(request, outcome)


def _each_once(*groups: Sequence[OpenRequest]) -> list[OpenRequest]:
    return list(dict.fromkeys(each for group in groups for each in group))


def _closed() -> RuntimeError:
    return RuntimeError("the engine was closed meanwhile")
