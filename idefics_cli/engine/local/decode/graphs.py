"""Decode steps recorded once and played back: a GPU is then told of one thing, not a thousand.

None of this has run on a GPU yet. What is recorded is compared with what it was recorded from
the first times that it is played, and given up where they differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from idefics_cli.engine.local.decode.slots import Slots
from idefics_cli.engine.local.transfer import to_device
from idefics_cli.models.families.internals import has_8bit_layers
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.planning import decoding

_log = logging.getLogger(__name__)
# How often each recording is compared: once with the inputs that it was made of, once with new.
_CHECKS = 2
# Of the largest logit. The kernels are the same, so equal results are to be expected.
_TOLERANCE = 0.02

Replay = Callable[[], Tensor]


class Capture(Protocol):
    """Records what a function does to tensors."""

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        """Return what does it again, at the same addresses; its result is overwritten by that."""
        ...


class Forward(Protocol):
    """One token of some rows; see `SlotStep`."""

    def __call__(self, inputs: Tensor, width: int) -> Tensor:
        """Run ids and places (2, rows) within *width* places; logits (rows, V)."""
        ...


class Graphs:
    """Recordings of decode steps, one for each number of rows: 1, 2, 4, 8 … and all slots.

    Args:
        capture: Records.

    Attributes:
        failure: Why there are none any more; None while all is well.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._replays: dict[int, Replay] = {}
        self._plays: dict[int, int] = {}
        self._inputs: Tensor | None = None
        self._recorded: tuple[Slots, int] | None = None
        self.failure: str | None = None

    def play(self, slots: Slots, newest: Tensor, forward: Forward) -> Tensor | None:
        """Run *newest* (rows,) of the rows of *slots*; return logits (rows, V), None if it cannot.

        The logits are overwritten by the next call.
        """
        if self.failure is not None:
            return None
        if self._recorded is None or self._recorded != (slots, slots.version):
            self._forget(slots)
        rows = bucket(len(newest), slots.rows)
        inputs = self._load(slots, newest)[:, :rows]

        def run() -> Tensor:
            return forward(inputs, slots.capacity)

        try:
            if rows not in self._replays:
                self._replays[rows] = self._capture(run)
            logits = self._replays[rows]()
            self._plays[rows] = self._plays.get(rows, 0) + 1
            if self._plays[rows] <= _CHECKS:
                _check(logits[: len(newest)], run()[: len(newest)])
        # Whatever it is, the plain way gives the answer, or an error that says more.
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
            _log.warning("decoding without CUDA graphs: %s", self.failure)
            self._forget(slots)
            return None
        return logits[: len(newest)]

    def _forget(self, slots: Slots) -> None:
        self._replays, self._plays = {}, {}
        self._recorded = (slots, slots.version)
        self._inputs = None

    def _load(self, slots: Slots, newest: Tensor) -> Tensor:
        """Return ids and places (2, all rows) in a buffer that stays; 0 where there is no row."""
        if self._inputs is None:
            self._inputs = newest.new_zeros(2, slots.rows)
        self._inputs.zero_()
        self._inputs[0, : len(newest)] = newest
        self._inputs[1, : len(newest)] = to_device(slots.lengths, newest.device)
        return self._inputs


def bucket(rows: int, most: int) -> int:
    """Return the number of rows that a recording for *rows* has: a power of two, or *most*."""
    return min(1 << (rows - 1).bit_length(), most)


def graphs_problem(model: Model) -> str | None:
    """Return why decode steps of *model* cannot be recorded, or None."""
    return decoding.graphs_problem(model.device.type, is_8bit=has_8bit_layers(model))


class CudaCapture:
    """Records CUDA kernels.

    Args:
        device: Where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        """See `Capture`."""
        with torch.cuda.device(self._device):
            graph, output = self._record(function)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def _record(self, function: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # One stream for all recordings, and no other work: libraries have a workspace for each.
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # the library's
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        # Around the recording too: one that fails leaves its stream behind (torch 2.13).
        with torch.cuda.stream(self._stream):
            # The workspaces are made in the first calls, which must not be recorded.
            for _ in range(2):
                function()
            # Memory of its own for each: what is shared cannot be used again when all recordings
            # are gone. Other threads may go on, as those that open and encode pictures.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                output = function()
        current.wait_stream(self._stream)
        return graph, output


def _check(played: Tensor, computed: Tensor) -> None:
    off, most = (played - computed).abs().max(), computed.abs().max()
    # Not `>`, which is false of no numbers.
    if not bool(off <= _TOLERANCE * most):
        raise RuntimeError(f"the recording is off by {float(off):.3g} of {float(most):.3g}")
