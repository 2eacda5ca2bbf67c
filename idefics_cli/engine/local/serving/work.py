"""What the scheduler works on: lanes with waiting requests, prompts, and active rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.kv_budget import KvLoad
from idefics_cli.engine.local.serving.active_rows import ActiveRows
from idefics_cli.engine.local.serving.prompt_run import PromptRun
from idefics_cli.engine.local.serving.requests import Lane, OpenRequest
from idefics_cli.engine.local.serving.schedule import RequestSchedule


class Work:
    """All requests that have no outcome yet. The inference thread owns it.

    Args:
        inference: Runs the model.
        closing: Set when the engine closes.

    Attributes:
        inference: As given.
        interactive: The lane of single interactive requests.
        batch: The lane of single batch requests.
        lanes: The lanes with requests that wait or run.
        runs: The groups whose prompts are computed.
        rows: The replies that are generated.
    """

    def __init__(self, inference: Inference, *, closing: Flag) -> None:
        self.inference = inference
        self.interactive = Lane(self._interactive_schedule(), "interactive", closing)
        self.batch = Lane(self._batch_schedule(), "batch", closing)
        self.lanes: list[Lane] = []
        self.runs: list[PromptRun] = []
        self.rows = ActiveRows(inference)

    def running(self) -> Iterator[OpenRequest]:
        """Yield every request that has started."""
        yield from self.rows.requests
        for run in self.runs:
            yield from run.requests

    @property
    def is_idle(self) -> bool:
        """Whether no request has started."""
        return not self.rows and not self.runs

    def load(self, group: Sequence[OpenRequest] = ()) -> KvLoad:
        """Return the lengths of all running requests, and of *group*, which is to start."""
        groups = [run.requests for run in self.runs] + ([group] if group else [])
        return KvLoad(
            [request.longest for request in self.rows.requests],
            [(len(each), max(request.tokens for request in each)) for each in groups],
            [request.longest for each in groups for request in each],
        )

    def wanted_rows(self) -> int:
        """Return the number of rows that the open requests will use at most."""
        open_count = sum(lane.active + len(lane.schedule.waiting) for lane in self.lanes)
        slots = sum(lane.schedule.slots for lane in self.lanes)
        # The number is rounded up to a power of two, so that the buffers do not grow with each
        # request.
        return max(1, min(slots, 1 << max(0, open_count - 1).bit_length()))

    def drop_closed_lanes(self) -> None:
        """Remove the lanes without requests."""
        self.lanes = [lane for lane in self.lanes if lane.is_open]
        if not self.lanes:
            # If the memory ran out, the number of slots was halved. Later requests may need less
            # memory, so they begin with all slots.
            self.interactive.schedule = self._interactive_schedule()
            self.batch.schedule = self._batch_schedule()

    def clear(self) -> list[OpenRequest]:
        """Forget all requests after a fault of the engine, and return them."""
        waiting = [request for lane in self.lanes for request in lane.schedule.take_all()]
        requests = [*self.running(), *waiting]
        for lane in self.lanes:
            lane.active = 0
        self.lanes, self.runs = [], []
        self.rows.forget()
        self.inference.drop_caches()
        return requests

    def _batch_schedule(self) -> RequestSchedule[OpenRequest]:
        return RequestSchedule(self.inference.tuning.interactive_slots)

    def _interactive_schedule(self) -> RequestSchedule[OpenRequest]:
        slots = self.inference.tuning.interactive_slots
        # Only a prompt that is computed alone can reuse the states of an earlier conversation.
        return RequestSchedule(slots, least_share=slots, most_together=1)
