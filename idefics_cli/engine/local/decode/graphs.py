"""CUDA graphs: a decode step is recorded once and replayed with one launch.

This code has not been run on a GPU yet. The first replays of each recording are compared with the
function that was recorded, and graphs are switched off if the results differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from idefics_cli.engine.local.decode.slots import Slots
from idefics_cli.engine.local.memory import error_summary
from idefics_cli.engine.local.transfer import to_device
from idefics_cli.models.families.internals import end_recording, has_8bit_layers
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.planning import decoding

_log = logging.getLogger(__name__)
# This many replays of each recording are checked: the first has the inputs of the recording, the
# second has new inputs.
_CHECKS = 2
# Allowed difference between a replay and a plain step, relative to the largest logit. Equal results
# are expected, because the kernels are the same.
_TOLERANCE = 0.02

Replay = Callable[[], Tensor]


class Capture(Protocol):
    """Records the kernels of a function."""

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        """Return a function that replays *function* on the same addresses.

        Each replay overwrites the result of the one before.
        """
        ...


class Forward(Protocol):
    """Runs one token of some rows; see `SlotStep`."""

    def __call__(self, inputs: Tensor, width: int) -> Tensor:
        """Run *inputs* (2, rows), the ids and then the positions; return logits (rows, V).

        Attention covers the first *width* positions of the cache.
        """
        ...


class Graphs:
    """Recordings of decode steps, one for each number of rows: 1, 2, 4, 8 … and all slots.

    Args:
        capture: Records a step.

    Attributes:
        failure: Why graphs are switched off; None while they are on.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._replays: dict[int, Replay] = {}
        self._replay_counts: dict[int, int] = {}
        self._inputs: Tensor | None = None
        self._recorded: tuple[Slots, int] | None = None
        self.failure: str | None = None

    def run_step(self, slots: Slots, newest: Tensor, forward: Forward) -> Tensor | None:
        """Run the *newest* tokens (rows,) of the rows of *slots* by a replay.

        Returns:
            Logits (rows, V), which the next call overwrites; None if graphs are switched off.
        """
        if self.failure is not None:
            return None
        if self._recorded is None or self._recorded != (slots, slots.version):
            self._drop_recordings(slots)
        rows = row_bucket(len(newest), slots.rows)
        inputs = self._load_inputs(slots, newest)[:, :rows]

        def run() -> Tensor:
            return forward(inputs, slots.capacity)

        try:
            if rows not in self._replays:
                self._replays[rows] = self._capture(run)
            logits = self._replays[rows]()
            self._replay_counts[rows] = self._replay_counts.get(rows, 0) + 1
            if self._replay_counts[rows] <= _CHECKS:
                _check_equal(logits[: len(newest)], run()[: len(newest)])
        # After any error, the step runs again without graphs. That run gives the answer, or a
        # clearer error.
        except Exception as error:
            self.failure = error_summary(error)
            _log.warning("decoding without CUDA graphs: %s", self.failure)
            self._drop_recordings(slots)
            return None
        return logits[: len(newest)]

    def _drop_recordings(self, slots: Slots) -> None:
        self._replays, self._replay_counts = {}, {}
        self._recorded = (slots, slots.version)
        self._inputs = None

    def _load_inputs(self, slots: Slots, newest: Tensor) -> Tensor:
        """Return ids and positions (2, all rows) in a fixed buffer; 0 for unused rows."""
        if self._inputs is None:
            self._inputs = newest.new_zeros(2, slots.rows)
        self._inputs.zero_()
        self._inputs[0, : len(newest)] = newest
        self._inputs[1, : len(newest)] = to_device(slots.lengths, newest.device)
        return self._inputs


def row_bucket(rows: int, most: int) -> int:
    """Return the number of rows of the recording for *rows*: a power of two, or *most*."""
    return min(1 << (rows - 1).bit_length(), most)


def graphs_problem(model: Model) -> str | None:
    """Return why decode steps of *model* cannot be recorded, or None."""
    return decoding.graphs_problem(model.device.type, is_8bit=has_8bit_layers(model))


class CudaCapture:
    """Records CUDA kernels.

    Args:
        device: The device of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        """Record *function*; see `Capture`."""
        with torch.cuda.device(self._device):
            graph, output = self._record(function)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def _record(self, function: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # All recordings share one stream, because libraries keep a workspace for each stream.
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # the library's
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        # Each recording has its own memory pool, because torch does not reuse a shared pool after
        # its recordings are gone.
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # "thread_local" lets other threads use the GPU meanwhile, such as the thread that encodes
        # pictures.
        recording = torch.cuda.graph(
            graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            # A recording that fails leaves its stream set as the current one (torch 2.13). So the
            # recording is inside this block, which resets the stream.
            with torch.cuda.stream(self._stream):
                # The first calls allocate workspaces, which must not be recorded.
                for _ in range(2):
                    function()
                with recording:
                    output = function()
        except BaseException:
            end_recording(torch.cuda.current_device(), pool)
            raise
        finally:
            # The wait is needed after an error, too: kernels that were started may still write into
            # buffers, which are freed next.
            current.wait_stream(self._stream)
        return graph, output


def _check_equal(replayed: Tensor, computed: Tensor) -> None:
    off, most = (replayed - computed).abs().max(), computed.abs().max()
    # The test is `not <=` and not `>`, because every comparison with NaN is false.
    if not bool(off <= _TOLERANCE * most):
        raise RuntimeError(f"the recording is off by {float(off):.3g} of {float(most):.3g}")
