"""A process that imports everything, loads one model, and reports time and memory.

`processes.FreshProcesses` starts it, with a pickled `LoadOrder` on stdin. It writes one line of
JSON to stdout.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
import warnings
from pathlib import Path

from idefics_cli.bench.cold_start.processes import LoadOrder
from idefics_cli.core.types import Attachment, GenerationRequest, Message, Sampling


def main() -> None:
    """Read a `LoadOrder` from stdin, and carry it out."""
    warnings.filterwarnings("ignore")
    order = pickle.load(sys.stdin.buffer)
    if not isinstance(order, LoadOrder):
        raise TypeError("stdin holds no order")
    # All imports happen here, because they must not count as time to load.
    _import_all(order.spec.family)
    _load(order)


def _import_all(family: str) -> None:
    import idefics_cli.bench.contenders
    import idefics_cli.bench.plain
    import idefics_cli.engine.local.engine  # noqa: F401  # both sides have the same imports
    from idefics_cli.models.families.classes import import_class, model_class, processor_classes
    from idefics_cli.models.families.spec import find_family

    import_class(find_family(family).runner)
    model_class(family)
    processor_classes(family)


def _load(order: LoadOrder) -> None:
    import torch

    from idefics_cli.bench.contenders import Ours
    from idefics_cli.bench.plain import Plain
    from idefics_cli.engine.local.engine import LocalEngine

    request = _request(order)
    started = time.perf_counter()
    contender = (
        Ours(LocalEngine(order.spec), time.perf_counter)
        if order.side == "ours"
        else Plain(order.spec, order.folder, time.perf_counter)
    )
    load_seconds = time.perf_counter() - started
    answered = contender.answer([request])
    on_gpu = order.spec.device.startswith("cuda")
    peak_bytes = torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()
    record = {
        "load_seconds": load_seconds,
        "peak_bytes": peak_bytes,
        "tokens": answered.tokens[0],
    }
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()
    if isinstance(contender, Ours):
        contender.engine.close()


def _request(order: LoadOrder) -> GenerationRequest:
    chats = order.spec.chats
    text = "Describe this image." if chats else " In this image,"
    return GenerationRequest(
        (Message("user", (Attachment(str(order.picture)), text)),),
        Sampling(max_new_tokens=order.max_new_tokens),
        "chat" if chats else "complete",
    )


def peak_resident_bytes() -> int:
    """Return the peak of this process's resident memory, mapped files included."""
    # `ru_maxrss` is the last choice. Linux passes it on to child processes, so a child would report
    # the peak of its parent.
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
