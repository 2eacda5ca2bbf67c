"""A process that loads one model and trains it step by step.

`process.open_trainer` starts it, with a pickled `TuneOrder` on stdin, and then a line with the
number of each step. It writes a line of JSON to stdout when the model is loaded, and after each
step.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING

from idefics_cli.bench.cold_start.child import peak_resident_bytes
from idefics_cli.bench.tuning.order import StepReport, TuneOrder

if TYPE_CHECKING:
    from idefics_cli.bench.tuning.sides import Training


def main() -> None:
    """Read a `TuneOrder` and the numbers of steps from stdin, and carry them out."""
    warnings.filterwarnings("ignore")
    order = pickle.load(sys.stdin.buffer)
    if not isinstance(order, TuneOrder):
        raise TypeError("stdin holds no order")
    from idefics_cli.bench.tuning.sides import OurTraining, PlainTraining

    training = OurTraining(order) if order.side == "ours" else PlainTraining(order)
    _write({"loaded": True})
    for line in sys.stdin.buffer:
        _write(asdict(_step(training, order, int(line))))


def _step(training: Training, order: TuneOrder, number: int) -> StepReport:
    import torch

    on_gpu = order.spec.device.startswith("cuda")
    started = time.perf_counter()
    loss, labelled = training.step(number)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()
    return StepReport(seconds, loss, labelled, peak)


def _write(record: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()
