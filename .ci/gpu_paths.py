"""Paths that only a GPU takes, each compared with a plain run of the built-in model on the CPU."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

from gpu_tools import Asker, Check, Skip, opened, plan_of, timed

from idefics_cli.bench.pictures import MIXED
from idefics_cli.core.types import Completion, LoadSpec, Sampling
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.hub.registry import DEMO

if TYPE_CHECKING:
    from idefics_cli.engine.local.decode.batch_row import BatchRow
    from idefics_cli.engine.local.engine import LocalEngine

# Random numbers that are rounded in another order may rarely give another token.
_EQUAL_SHARE = 0.8
_FEATURE_ERROR = 1e-3


def job_paths(check: Check) -> None:
    """Bytes to the device, drawing, take-back, urgent requests and adapters, each as on the CPU."""
    spec = plan_of(check, DEMO, dtype="float32").spec
    plain_spec = plan_of(replace(check, device="cpu"), DEMO, dtype="float32").spec
    with opened(spec, stop_ids=()) as engine, opened(plain_spec, stop_ids=()) as plain:
        asker = Asker(engine, check.scratch / "paths")
        with check.part("tiles"):
            _compare_features(check, engine, plain, asker)
        with check.part("drawn tokens"):
            _compare_draws(check, engine, plain, asker)
        with check.part("take-back"):
            _take_back(check, engine, plain, asker)
        with check.part("an urgent request"):
            _ask_beside_captions(check, engine, plain, asker)
    with check.part("the cost of drawing"):
        _time_draws(check)
    with check.part("adapter"):
        _compare_adapter(check, spec, plain_spec)


def _compare_features(check: Check, engine: LocalEngine, plain: LocalEngine, asker: Asker) -> None:
    """Tiles go to the device as bytes, and their features are those of the CPU."""
    import torch

    found = []
    prepared = asker.pictures(MIXED[:3], new_tokens=1)
    for each in (engine, plain):
        tensors = [tensors for request in prepared for tensors in each.find_tensors(request)]
        dtypes = {str(tile.dtype) for one in tensors for tile in one.tiles}
        with torch.inference_mode():
            encoded = each.inference.encoder.encode(tensors)
        if encoded is None:
            raise RuntimeError("a feature is missing")
        found.append([encoded[one.picture.digest].cpu() for one in tensors])
    check.tell("dtype of tiles", ", ".join(sorted(dtypes)), ok=dtypes == {"torch.uint8"})
    errors = [
        float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(*found, strict=True)
    ]
    check.tell("features", f"off by {max(errors):.2g} at most", ok=max(errors) < _FEATURE_ERROR)


def _compare_draws(check: Check, engine: LocalEngine, plain: LocalEngine, asker: Asker) -> None:
    """A seed gives the tokens of the CPU, with each way to limit the choice."""
    limits = ({}, {"top_p": 0.9}, {"top_k": 20}, {"top_p": 0.8, "repetition_penalty": 1.1})
    requests = [
        _with_sampling(request, temperature=0.9, seed=seed, **limits[seed % len(limits)])
        for seed, request in enumerate(asker.texts(8, 30, new_tokens=24))
    ]
    _tell_equal(check, "drawn replies as on the CPU", engine.complete(requests), plain, requests)


def _take_back(check: Check, engine: LocalEngine, plain: LocalEngine, asker: Asker) -> None:
    """Replies go on after their last token when the memory runs out twice."""
    requests = asker.pictures([MIXED[0]] * 4, new_tokens=30)
    requests += [
        _with_sampling(each, temperature=0.8, seed=5)
        for each in asker.pictures([MIXED[1]] * 2, new_tokens=30)
    ]
    outcomes: SimpleQueue[object] = SimpleQueue()
    with _memory_runs_out_for(4) as calls:
        for at, request in enumerate(requests):
            engine.submit(request, lambda event, at=at: outcomes.put((at, event)))
        done: dict[int, Completion] = {}
        while len(done) < len(requests):
            at, event = outcomes.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Completion):
                done[at] = event
    failed = calls.count(None)
    check.tell("times that the memory ran out", failed, ok=failed == 2)
    # One by one, all replies would take 6 x 30 steps.
    check.tell("steps of replies that were taken back", len(calls), ok=len(calls) < 4 * 30)
    given = [done[at] for at in range(len(requests))]
    _tell_equal(check, "replies that were taken back, as on the CPU", given, plain, requests)


@contextmanager
def _memory_runs_out_for(rows: int) -> Iterator[list[int | None]]:
    """Let two decode steps of at least *rows* replies fail; give the replies of each step.

    A step that fails is None. Seven steps at least lie between the two.
    """
    import torch

    from idefics_cli.engine.local.decode.sampling import Scores

    whole, calls = Scores.choose_tokens, list[int | None]()

    def choose_tokens(scores: Scores, active: Sequence[BatchRow]) -> None:
        fails = len(active) >= rows and calls.count(None) < 2 and None not in calls[-7:]
        calls.append(None if fails else len(active))
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory, as imitated by gpu_check")
        whole(scores, active)

    Scores.choose_tokens = choose_tokens
    try:
        yield calls
    finally:
        Scores.choose_tokens = whole


def _ask_beside_captions(
    check: Check, engine: LocalEngine, plain: LocalEngine, asker: Asker
) -> None:
    """A question beside captions gets its first token soon, and its reply is the same."""
    captions = asker.pictures([MIXED[at % 3] for at in range(12)], new_tokens=40)
    (question,) = asker.texts(1, 60, new_tokens=12)
    alone = _first_chunk_seconds(engine, question)[0]
    events: SimpleQueue[object] = SimpleQueue()
    for request in captions:
        engine.submit(request, events.put, urgency="batch")
    time.sleep(alone)
    beside, reply = _first_chunk_seconds(engine, question)
    for _ in captions:
        if isinstance(outcome := events.get(), Exception):
            raise outcome
    value = f"{beside * 1e3:.1f} ms beside captions, {alone * 1e3:.1f} ms alone"
    check.tell("first token of a question", value)
    _tell_equal(check, "question beside captions, as on the CPU", [reply], plain, [question])


def _first_chunk_seconds(engine: LocalEngine, request: Prepared) -> tuple[float, Completion]:
    """Return the seconds until the first event of *request*, and its reply."""
    events: SimpleQueue[object] = SimpleQueue()
    started = time.perf_counter()
    engine.submit(request, events.put, streams=True)
    event = events.get()
    seconds = time.perf_counter() - started
    while not isinstance(event, Completion):
        if isinstance(event, Exception):
            raise event
        event = events.get()
    return seconds, event


def _time_draws(check: Check) -> None:
    """Tell the time of choosing the tokens of many rows with a large vocabulary."""
    import torch

    from idefics_cli.engine.local.decode.batch_row import BatchRow
    from idefics_cli.engine.local.decode.sampling import Scores

    rows, tokens = (2, 1000) if check.quick else (16, 128_259)
    logits = torch.randn(rows, tokens, device=check.device) * 3
    banned = torch.tensor([0], device=check.device)
    times = {}
    for name, limits in (
        ("greedy", {}),
        ("temperature", {"temperature": 0.7}),
        ("top-p", {"temperature": 0.7, "top_p": 0.9}),
    ):
        drawn = [BatchRow(Sampling(seed=at, **limits), [1], 99) for at in range(rows)]

        def choose(drawn: list[BatchRow] = drawn) -> None:
            for _ in range(10):
                Scores(logits, banned).choose_tokens(drawn)

        choose()
        times[name] = round(timed(check, choose)[0] * 100, 2)
    check.tell(f"tokens of {rows} rows, {tokens} ids", f"milliseconds per step: {times}")


def _compare_adapter(check: Check, spec: LoadSpec, plain_spec: LoadSpec) -> None:
    """A LoRA adapter gives the replies of the CPU."""
    if importlib.util.find_spec("peft") is None:
        raise Skip("peft is not installed")
    from idefics_cli.models.hub.adapters import find_adapter
    from idefics_cli.models.hub.facts import demo_folder
    from idefics_cli.training.targets import import_peft

    # Faster than the import in `tests.support.adapters`.
    import_peft()
    from tests.support.adapters import library_model, train

    folder = check.scratch / "adapter"
    train(library_model(demo_folder()), folder)
    adapter = find_adapter(str(folder), offline=True)
    with (
        opened(replace(spec, adapter=adapter), stop_ids=()) as engine,
        opened(replace(plain_spec, adapter=adapter), stop_ids=()) as plain,
    ):
        asker = Asker(engine, check.scratch / "adapter-pictures")
        requests = asker.pictures(MIXED[:2], new_tokens=20)
        given = engine.complete(requests)
        _tell_equal(check, "replies with an adapter, as on the CPU", given, plain, requests)


def _with_sampling(prepared: Prepared, **changes: object) -> Prepared:
    request = prepared.request
    return replace(
        prepared, request=replace(request, sampling=replace(request.sampling, **changes))
    )


def _tell_equal(
    check: Check,
    name: str,
    given: Sequence[Completion],
    plain: LocalEngine,
    requests: Sequence[Prepared],
) -> None:
    wanted = plain.complete(requests)
    equal = sum(a.token_ids == b.token_ids for a, b in zip(given, wanted, strict=True))
    check.tell(name, f"{equal} of {len(wanted)} equal", ok=equal >= _EQUAL_SHARE * len(wanted))
