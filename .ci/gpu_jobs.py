"""The jobs of `gpu_check.py`: each checks one subject on a device and tells its figures."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_decode_attention import KERNEL, compare_decode_attention
from gpu_paths import job_paths
from gpu_tools import (
    Asker,
    Check,
    Skip,
    has_bitsandbytes,
    opened,
    plan_of,
    random_spec,
    served,
    timed,
    tokens_per_second,
)

from idefics_cli.bench.pictures import MIXED
from idefics_cli.bench.shapes import SHAPES
from idefics_cli.core.units import GIB, MIB, format_size
from idefics_cli.hardware.machine import probe_machine
from idefics_cli.models.hub.facts import registry_facts
from idefics_cli.models.hub.registry import DEMO
from idefics_cli.models.planning.plan import Plan, PlanChoices, make_plan

if TYPE_CHECKING:
    from torch import Tensor

    from idefics_cli.core.types import DtypeName
    from idefics_cli.engine.local.decode.graphs import Replay
    from idefics_cli.engine.local.engine import LocalEngine
    from idefics_cli.hardware.machine import Gpu

TOP = Path(__file__).parents[1]
# Idefics2 cuts a photo of this size into four tiles, and adds the whole picture.
_SPLIT = (980, 980)
# An estimate for loading 16 GB and a few answers. A part that loads them needs this time.
_LOAD_SECONDS = 20.0


def job_weights(check: Check) -> None:
    """Write the random weights."""
    from idefics_cli.bench.random_model import make

    folder = check.weights.with_suffix(".part")
    dtype: DtypeName = "bfloat16" if check.device.startswith("cuda") else "float32"
    make(folder, SHAPES[check.shape], dtype=dtype, layers=check.layers)
    folder.rename(check.weights)


def job_attention(check: Check) -> None:
    """Attention at the shapes of real models: right by the probe; which kernel, how fast."""
    import torch

    _tell_versions(check)
    torch.backends.cuda.enable_cudnn_sdp(False)  # as an engine does
    with check.part("probe"):
        _probe_attention(check)
    with check.part("decode attention"):
        compare_decode_attention(check)
    dtype = torch.bfloat16 if check.device.startswith("cuda") else torch.float32
    short, long = (128, 256) if check.quick else (1024, 8192)
    patches = 256 if check.quick else 4900
    # Rows, heads, heads of keys, queries, keys, width; the kind of mask.
    calls = {
        f"decode of 16 rows, {short} positions": (16, 32, 8, 1, short, 128, "given"),
        f"decode of 1 row, {long} positions": (1, 32, 8, 1, long, 128, "given"),
        f"prefill of {short} tokens": (1, 32, 8, short, short, 128, "causal"),
        "vision, one tile": (1, 16, 16, patches, patches, 72, "none"),
        "vision, padded tiles": (2, 16, 16, patches, patches, 72, "given"),
        "perceiver": (1, 16, 4, 64, patches + 64, 96, "none"),
    }
    for name, (rows, heads, kv_heads, queries, keys, width, kind) in calls.items():
        with check.part(name):
            query, key = (
                torch.randn(rows, count, length, width, device=check.device, dtype=dtype)
                for count, length in ((heads, queries), (kv_heads, keys))
            )
            mask = None
            if kind == "given":
                mask = torch.ones(rows, 1, queries, keys, dtype=torch.bool, device=check.device)
            _time_attention(check, name, query, key, mask, is_causal=kind == "causal")
    if check.device.startswith("cuda"):
        with check.part("new prompt lengths"):
            _time_new_lengths(check)


def _tell_versions(check: Check) -> None:
    import torch

    machine = probe_machine()
    check.tell("versions", dict(machine.versions))
    for gpu in machine.gpus:
        check.tell(gpu.device, f"{gpu.name}, {gpu.capability}, {format_size(gpu.free_bytes)} free")
    check.tell("CUDA", torch.version.cuda)


def _probe_attention(check: Check) -> None:
    from idefics_cli.models.kernels.attention_probe import TOLERANCE, HeadShape, probe_attention

    models = {
        HeadShape(facts.shape.heads, facts.shape.kv_heads, facts.shape.head_dim): facts
        for facts in registry_facts()
    }
    for text, facts in models.items():
        for attention, (dtype, allowed) in product(("sdpa", KERNEL), TOLERANCE.items()):
            name = f"{attention} of {facts.name} in {dtype}"
            with check.part(name):
                errors = probe_attention(attention, device=check.device, dtype=dtype, text=text)
                worst = max(errors, key=lambda error: error.error)
                value = f"{text}: off by {worst.error:.2g} at most ({worst.call})"
                check.tell(name, value, ok=worst.error <= allowed)
        if check.quick:
            return


def _time_attention(
    check: Check, name: str, query: Tensor, key: Tensor, mask: Tensor | None, *, is_causal: bool
) -> None:
    """Tell the kernel that torch takes, and microseconds of every kernel that takes this call."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    is_grouped = query.shape[1] != key.shape[1]

    def call() -> Tensor:
        return scaled_dot_product_attention(
            query, key, key, attn_mask=mask, is_causal=is_causal, enable_gqa=is_grouped
        )

    first, _ = timed(check, call)
    rounds = 2 if check.quick else 20

    def call_often() -> None:
        for _ in range(rounds):
            call()

    times = {"default": round(timed(check, call_often)[0] / rounds * 1e6)}
    kinds = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    for kind in kinds if check.device.startswith("cuda") else ():
        with sdpa_kernel(kind), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a kernel that does not take the call says why
            try:
                call()
                times[kind.name] = round(timed(check, call_often)[0] / rounds * 1e6)
            except RuntimeError:
                torch.cuda.empty_cache()
    check.tell(name, f"first call {first * 1e3:.1f} ms; microseconds: {times}")


def _time_new_lengths(check: Check) -> None:
    """Tell what a prompt of a new length costs, with and without the attention of cuDNN."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    for uses_cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(uses_cudnn)
        spent = []
        for keys in range(900, 940, 4):
            query, key = (
                torch.randn(1, 32, length, 128, device=check.device, dtype=torch.bfloat16)
                for length in (40, keys)
            )
            mask = torch.ones(1, 1, 40, keys, dtype=torch.bool, device=check.device)
            call = partial(scaled_dot_product_attention, query, key, key, attn_mask=mask)
            spent.append(timed(check, call)[0] * 1e3)
        median = sorted(spent)[len(spent) // 2]
        # An engine switches cuDNN off, so only the second figure matters.
        check.tell(
            f"a prompt of a new length with{'' if uses_cudnn else 'out'} cuDNN",
            f"{median:.1f} ms",
            ok=None if uses_cudnn else median < 5,
        )


def job_release(check: Check) -> None:
    """Each model of a process is freed when its engine is closed."""
    import torch

    is_cuda = check.device.startswith("cuda")
    spec = plan_of(check, DEMO).spec
    before = torch.cuda.memory_allocated(check.device) if is_cuda else 0
    for number in (1, 2):
        with check.part(f"model {number}"):
            with opened(spec) as engine:
                asker = Asker(engine, check.scratch / f"release-{number}")
                engine.complete(asker.pictures([MIXED[0]], new_tokens=20))
                held = torch.cuda.memory_allocated(check.device) if is_cuda else 0
                parameter = weakref.ref(engine.loaded.model.get_input_embeddings().weight)
            after = torch.cuda.memory_allocated(check.device) if is_cuda else 0
            state = "freed" if parameter() is None else "alive"
            check.tell(f"model {number} after close", state, ok=parameter() is None)
            if is_cuda:
                value = f"{format_size(held)} while open, {format_size(after)} after close"
                # The workspaces of the libraries stay.
                check.tell(f"memory of model {number}", value, ok=after - before < 64 * MIB)


def job_check(check: Check) -> None:
    """The check of `idefics doctor --check`: known answers in every way of the machine."""
    from idefics_cli.cli.commands.doctor.check import draw_pictures
    from idefics_cli.selfcheck.run import Examination, check_ways

    facts = next(facts for facts in registry_facts() if facts.name == DEMO)
    pictures = draw_pictures(check.scratch / "known")[: 3 if check.quick else None]
    examination = Examination(facts, probe_machine(), pictures, device=check.device)
    for result in check_ways(examination):
        ok = {"right": True, "wrong": False}.get(result.status)
        value = result.reason or f"{result.pace or 0:.2f} times the seconds of the reference"
        check.tell(result.way.name, f"{result.status}: {value}", ok=ok)
        check.need_time("the other ways")


def job_tests(check: Check) -> None:
    """The tests with the marker `gpu`."""
    check.need_cuda()
    if importlib.util.find_spec("pytest") is None:
        raise Skip("pytest is not installed")
    files = [str(path) for path in sorted((TOP / "tests").rglob("test_on_gpu*.py"))]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", *files]
    with subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            test, _, word = line.strip().partition(" ")
            if "::" in test and word.startswith(("PASSED", "FAILED", "ERROR")):
                ok = word.startswith("PASSED")
                check.tell(test.rpartition("/")[2], "passed" if ok else "failed", ok=ok)
    if process.returncode != 0:
        check.tell("pytest", f"exit code {process.returncode}", ok=False)


def job_graphs(check: Check) -> None:
    """CUDA graphs: equal replies, the cost of a recording, and how often the host waits."""
    check.need_cuda()
    import torch

    from idefics_cli.engine.local.decode.graphs import CudaCapture

    spent: list[tuple[float, int]] = []
    capture = CudaCapture(torch.device(check.device))

    def timed_capture(function: Callable[[], Tensor]) -> Replay:
        held = torch.cuda.memory_reserved(check.device)
        seconds, replay = timed(check, partial(capture, function))
        spent.append((seconds, torch.cuda.memory_reserved(check.device) - held))
        return replay

    spec = plan_of(check, DEMO, dtype="float32").spec
    plain_spec = replace(spec, uses_graphs=False)
    with (
        opened(spec, stop_ids=(), capture=timed_capture) as engine,
        opened(plain_spec, stop_ids=()) as plain,
    ):
        asker = Asker(engine, check.scratch / "graphs")
        for rows in (1, 2, 5, 8, 13):
            with check.part(f"{rows} rows"):
                # Replies that end apart, some beyond the first buffers.
                requests = [
                    request
                    for row in range(rows)
                    for request in asker.pictures([MIXED[0]], new_tokens=5 + 60 * (row % 5))
                ]
                given, wanted = engine.complete(requests), plain.complete(requests)
                equal = sum(a.token_ids == b.token_ids for a, b in zip(given, wanted, strict=True))
                speeds = f"{tokens_per_second(given)}/s, plain {tokens_per_second(wanted)}/s"
                name = f"{rows} rows as without graphs"
                check.tell(name, f"{equal} equal; {speeds}", ok=equal == rows)
        failure = engine.inference.graphs and engine.inference.graphs.failure
        check.tell("failure", failure, ok=failure is None)
        if spent:
            median = sorted(seconds for seconds, _ in spent)[len(spent) // 2]
            most = format_size(max(size for _, size in spent))
            check.tell("a recording", f"{len(spent)}; median {median * 1e3:.0f} ms, {most} at most")
        with check.part("a long reply"):
            _count_growth(check, engine, asker, spent)
        with check.part("waits of the host"):
            _count_waits(check, engine, asker)


def _count_growth(
    check: Check, engine: LocalEngine, asker: Asker, spent: Sequence[tuple[float, int]]
) -> None:
    """The buffers of one growing reply double, so few recordings are made."""
    before = len(spent)
    engine.inference.drop_caches()
    (done,) = engine.complete(asker.texts(1, 40, new_tokens=900))
    made = len(spent) - before
    # Buffers of 256, 512 and 1,024 positions.
    check.tell(f"recordings of {done.new_tokens} tokens", made, ok=1 <= made <= 3)


def _count_waits(check: Check, engine: LocalEngine, asker: Asker) -> None:
    """Tell how many calls made the host wait in two replies that differ by 40 tokens."""
    import torch

    counts = []
    for new_tokens in (20, 60):
        (request,) = asker.texts(1, 40, new_tokens=new_tokens)
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            engine.complete([request])
        torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(warning.message) for warning in caught))
    check.tell("calls that made the host wait, 20 and 60 tokens", counts)


def job_shape(check: Check) -> None:
    """Random weights of a real shape: memory within the plan, and speed."""
    plan = plan_of(check, check.shape, dtype=None if check.quick else "bfloat16")
    spec = random_spec(check, plan)
    started = time.perf_counter()
    with opened(spec, stop_ids=()) as engine:
        check.tell("load", f"{time.perf_counter() - started:.1f} s")
        asker = Asker(engine, check.scratch / "shape")
        with check.part("memory"):
            _tell_memory(check, engine, asker, plan)
        with check.part("decode"):
            _time_decoding(check, engine, asker)
        for slots in (1, 2) if check.quick else (1, 8, 32, 64):
            with check.part(f"captions, {slots} at a time"):
                _time_captions(check, engine, asker, slots)
        if check.device.startswith("cuda"):
            _tell_pools(check)
    if check.device.startswith("cuda"):
        with (
            check.part("without graphs", seconds=_LOAD_SECONDS),
            opened(replace(spec, uses_graphs=False), stop_ids=()) as engine,
        ):
            asker = Asker(engine, check.scratch / "plain")
            _time_decoding(check, engine, asker, "without graphs, ")


def _tell_pools(check: Check) -> None:
    """Tell the memory that torch holds for each stream; the vision model has one of its own."""
    import torch

    held: dict[int, int] = {}
    for segment in torch.cuda.memory_snapshot():
        held[segment["stream"]] = held.get(segment["stream"], 0) + segment["total_size"]
    sizes = sorted(held.values(), reverse=True)
    check.tell("memory of each stream", ", ".join(map(format_size, sizes)))


def _tell_memory(check: Check, engine: LocalEngine, asker: Asker, plan: Plan) -> None:
    """Compare the memory of weights and of first answers with the plan."""
    import torch

    need = plan.needs[0]
    planned = f"the plan has {format_size(need.weights)} and {format_size(need.working)}"
    size = (200, 150) if check.quick else _SPLIT
    requests = asker.pictures([size] * 2, new_tokens=2)
    if not check.device.startswith("cuda"):
        seconds, _ = timed(check, partial(engine.complete, requests[:1]))
        check.tell("first token", f"{seconds:.2f} s; {planned}", ok=True)
        return
    held = torch.cuda.memory_allocated(check.device)
    check.tell("weights", f"{format_size(held)}; {planned}", ok=held <= 1.05 * need.weights)
    for name, request in zip(("first picture", "next picture"), requests, strict=True):
        torch.cuda.reset_peak_memory_stats(check.device)
        seconds, _ = timed(check, partial(engine.complete, [request]))
        peak = torch.cuda.max_memory_allocated(check.device) - held
        value = f"{seconds * 1e3:.0f} ms, {format_size(peak)} more; {planned}"
        check.tell(name, value, ok=peak <= need.working + need.kv_cache)


def _time_decoding(check: Check, engine: LocalEngine, asker: Asker, name: str = "") -> None:
    sizes = ((1, 60),) if check.quick else ((1, 800), (4, 800), (16, 800), (64, 800), (1, 8000))
    new_tokens = 8 if check.quick else 64
    for rows, tokens in sizes:
        check.need_time(f"{name}{rows} rows of {tokens} tokens")
        # The first call records steps.
        for new in (new_tokens // 4, new_tokens):
            done = engine.complete(asker.texts(rows, tokens, new_tokens=new))
        ended = sum(each.new_tokens == new_tokens for each in done)
        value = f"{tokens_per_second(done)} tokens/s"
        check.tell(f"{name}{rows} rows of {tokens} tokens", value, ok=ended == rows)
    if engine.inference.graphs is not None:
        failure = engine.inference.graphs.failure
        check.tell("CUDA graphs", failure or "on", ok=failure is None)


def _time_captions(check: Check, engine: LocalEngine, asker: Asker, slots: int) -> None:
    count = 3 if check.quick else 12 if slots == 1 else max(24, slots)
    sizes = [(200, 150)] if check.quick else [_SPLIT, *MIXED]
    started = time.perf_counter()
    requests = asker.pictures(
        [sizes[at % len(sizes)] for at in range(count)], new_tokens=4 if check.quick else 40
    )
    opening = time.perf_counter() - started
    seconds, left = timed(check, partial(served, engine, requests, slots))
    value = f"{count / seconds:.2f}/s (pictures drawn and opened: {count / opening:.1f}/s)"
    check.tell(f"captions, {slots} at a time", value, ok=left == slots)


def job_cards(check: Check) -> None:
    """Smaller cards, imitated by a share of the memory: plans hold what they promise."""
    check.need_cuda()
    import torch

    from idefics_cli.cli.commands.caption.inputs import automatic_batch

    machine = probe_machine()
    index = int(check.device.partition(":")[2] or 0)
    real = next(gpu for gpu in machine.gpus if gpu.index == index)
    facts = next(facts for facts in registry_facts() if facts.name == check.shape)
    for size in (24, 16, 12, 8) if has_bitsandbytes() else (24,):
        with check.part(f"a card of {size} GiB", seconds=_LOAD_SECONDS):
            # The driver and a desktop take a part.
            free = size * GIB * 93 // 100
            card = replace(real, total_bytes=size * GIB, free_bytes=free)
            plan = make_plan(
                facts, PlanChoices(device=check.device), replace(machine, gpus=(card,))
            )
            if plan.spec.device_map is not None:
                raise Skip("the plan keeps weights in RAM")
            with imitated_card(real, card):
                _caption_on_card(check, plan, f"captions on {size} GiB", automatic_batch(plan))
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def imitated_card(real: Gpu, card: Gpu) -> Iterator[None]:
    """Let torch use, and report, only the memory of *card*, a part of that of *real*."""
    import torch

    def mem_get_info(device: object = None) -> tuple[int, int]:
        return card.free_bytes - torch.cuda.memory_reserved(card.device), card.total_bytes

    whole = torch.cuda.mem_get_info
    torch.cuda.mem_get_info = mem_get_info
    torch.cuda.set_per_process_memory_fraction(card.free_bytes / real.total_bytes, card.index)
    torch.cuda.reset_peak_memory_stats(card.device)
    try:
        yield
    finally:
        torch.cuda.mem_get_info = whole
        torch.cuda.set_per_process_memory_fraction(1.0, card.index)


def _caption_on_card(check: Check, plan: Plan, name: str, slots: int) -> None:
    """Caption with the batch size of the plan, which must hold to the end."""
    import torch

    with opened(random_spec(check, plan), stop_ids=()) as engine:
        asker = Asker(engine, check.scratch / "card")
        requests = asker.pictures([_SPLIT] * max(2, slots), new_tokens=24)
        seconds, left = timed(check, partial(served, engine, requests, slots))
    value = (
        f"{plan.spec.dtype}, {plan.spec.quantization}, {slots} at a time planned, "
        f"{left} in the end, {len(requests) / seconds:.2f}/s, "
        f"{format_size(torch.cuda.max_memory_reserved(check.device))} at most"
    )
    check.tell(name, value, ok=left == slots)


def job_quantized(check: Check) -> None:
    """Quantized weights of a real shape: memory within the plan, and speed."""
    check.need_cuda()
    if not has_bitsandbytes():
        raise Skip("bitsandbytes is not installed")
    import torch

    with check.part("kept 4bit"):
        _keep_quantized(check)
    for quantization in ("4bit", "8bit"):
        with check.part(quantization, seconds=_LOAD_SECONDS):
            plan = plan_of(check, check.shape, dtype="bfloat16", quantization=quantization)
            with opened(random_spec(check, plan), stop_ids=()) as engine:
                held, planned = torch.cuda.memory_allocated(check.device), plan.needs[0].weights
                value = f"{format_size(held)}, the plan has {format_size(planned)}"
                check.tell(f"{quantization} weights", value, ok=held <= 1.05 * planned)
                asker = Asker(engine, check.scratch / quantization)
                _time_decoding(check, engine, asker, f"{quantization}, ")


def _keep_quantized(check: Check) -> None:
    """The second start reads what the first one quantized from float32, and replies the same."""
    from idefics_cli.bench.random_model import make
    from idefics_cli.engine.local.engine import LocalEngine
    from idefics_cli.engine.local.inference import Inference
    from idefics_cli.models.loading.loader import load

    folder = check.scratch / "float32"
    make(folder, SHAPES["smolvlm-256m"], dtype="float32", layers=None if not check.quick else 2)
    plan = plan_of(check, "smolvlm-256m", dtype="bfloat16", quantization="4bit")
    kept = check.scratch / "kept"
    spec = replace(plan.spec, repo=str(folder), quantized_folder=str(kept), offline=True)
    replies, seconds = [], []
    for _ in range(2):
        started = time.perf_counter()
        with LocalEngine(
            spec,
            load=partial(load, worth_keeping_bytes=0),
            make_inference=partial(Inference, stop_ids=()),
        ) as engine:
            seconds.append(round(time.perf_counter() - started, 1))
            asker = Asker(engine, check.scratch / "kept-pictures")
            (done,) = engine.complete(asker.texts(1, 40, new_tokens=16))
            replies.append(done.token_ids)
    check.tell("starts with 4 bit from float32", f"{seconds} s")
    was_kept = any(kept.iterdir()) if kept.exists() else False
    check.tell("kept weights", "read" if was_kept else "none", ok=was_kept)
    check.tell("replies of both", "equal", ok=replies[0] == replies[1])


JOBS: Mapping[str, Callable[[Check], None]] = {
    "weights": job_weights,
    "attention": job_attention,
    "release": job_release,
    "check": job_check,
    "tests": job_tests,
    "paths": job_paths,
    "graphs": job_graphs,
    "shape": job_shape,
    "cards": job_cards,
    "quantized": job_quantized,
}


def main() -> None:
    """Run the job of the command line; `gpu_check.py` gives the time and the file in variables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    end = time.monotonic() + float(os.environ.get("SECONDS", "600"))
    figures = Path(os.environ.get("FIGURES", os.devnull))
    check = Check(given.device, given.quick, given.scratch, figures, end)
    try:
        if given.device.startswith("cuda"):
            import torch

            if not torch.cuda.is_available():
                raise Skip("torch finds no CUDA device")
        JOBS[given.job](check)
    except Skip as skip:
        check.tell_skip(str(skip))


if __name__ == "__main__":
    main()
