"""A process that has imported all, loads models to order, and tells time and memory: `load`.

`python -m idefics_cli.bench.cold_start.child` reads one `importer.Order` in each line of stdin, and
writes one line of JSON for each.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
import warnings
from functools import partial
from pathlib import Path

from idefics_cli.bench.cold_start.forks import in_fork
from idefics_cli.bench.importer import Order
from idefics_cli.core.types import Attachment, GenerationRequest, LoadSpec, Message, Sampling


def main() -> None:
    """Do what the orders on stdin say."""
    warnings.filterwarnings("ignore")
    for line in sys.stdin:
        order = pickle.loads(bytes.fromhex(line))
        if not isinstance(order, Order):
            raise TypeError("stdin holds no order")
        # Libraries first, so that they are not counted.
        _import_all(order.spec)
        if not order.in_fork:
            _load(order)
        elif code := in_fork(partial(_load, order)):
            sys.exit(1 if code > 0 else f"a process was ended by signal {-code}")


def _import_all(spec: LoadSpec) -> None:
    import idefics_cli.bench.contenders
    import idefics_cli.bench.plain
    import idefics_cli.engine.local.engine  # noqa: F401  # for both sides
    from idefics_cli.models.families.classes import model_class, processor_classes

    model_class(spec.family)
    processor_classes(spec.family)


def _load(order: Order) -> None:
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
    outcome = contender.answer([request])
    on_gpu = order.spec.device.startswith("cuda")
    peak = torch.cuda.max_memory_allocated() if on_gpu else _peak_resident_bytes()
    told = {
        "load_seconds": load_seconds,
        "peak_bytes": peak,
        "tokens": outcome.tokens[0],
    }
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    if isinstance(contender, Ours):
        contender.engine.close()


def _request(order: Order) -> GenerationRequest:
    spec: LoadSpec = order.spec
    text = "Describe this image." if spec.chats else " In this image,"
    return GenerationRequest(
        (Message("user", (Attachment(str(order.picture)), text)),),
        Sampling(max_new_tokens=order.max_new_tokens),
        "chat" if spec.chats else "complete",
    )


def _peak_resident_bytes() -> int:
    """Return the most memory that was resident, mapped files included."""
    # Linux hands `ru_maxrss` on to what a process starts, so a child would tell its parent's.
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
