"""CUDA graphs: every bucket, growth, replies that end, and recordings that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.decode.graphs import CudaCapture, Replay
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.protocol import Prepared
from tests.support.prompts import (
    CONVERSATIONS,
    as_request,
    mixed_requests,
    open_engine,
)

EngineOf = Callable[[str], LocalEngine]
OpenOnGpu = Callable[..., LocalEngine]
DEVICE = "cuda:0"
KIND = "idefics2"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch TF32 off in convolutions; in matrix products it is off by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def open_on_gpu(checkpoint: Callable[[str], Path]) -> Iterator[OpenOnGpu]:
    """Return a function that opens an engine on the GPU; it takes options of `Inference`."""
    engines: list[LocalEngine] = []

    def get(kind: str = KIND, **options: object) -> LocalEngine:
        make = partial(Inference, **{"stop_ids": (), **options})  # type: ignore[arg-type]  # the options have several types
        engines.append(open_engine(checkpoint(kind), kind, make, device=DEVICE))
        return engines[-1]

    yield get
    for engine in engines:
        engine.close()


class CountingCapture:
    """Records with CUDA graphs.

    Attributes:
        recordings: Number of rows of each recording, in order.
    """

    def __init__(self) -> None:
        self._capture = CudaCapture(torch.device(DEVICE))
        self.recordings: list[int] = []

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        rows: list[int] = []

        def run() -> Tensor:
            logits = function()
            rows.append(len(logits))
            return logits

        replay = self._capture(run)
        self.recordings.append(rows[-1])
        return replay


class FailingCapture:
    """Records with CUDA graphs a function that fails while it is recorded.

    Args:
        fail: Called after the function, during the recording only.
    """

    def __init__(self, fail: Callable[[Tensor], object]) -> None:
        self._capture = CudaCapture(torch.device(DEVICE))
        self._fail = fail

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        def run() -> Tensor:
            logits = function()
            if torch.cuda.is_current_stream_capturing():
                self._fail(logits)
            return logits

        return self._capture(run)


def read_on_host(logits: Tensor) -> object:
    """Wait for the GPU, which CUDA forbids in a recording."""
    return float(logits.sum())


def allocate_too_much(logits: Tensor) -> object:
    """Allocate twice the memory of the GPU."""
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    return logits.new_empty(2 * total, dtype=torch.uint8)


def tokens(engine: LocalEngine, batch: list[Prepared]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in engine.complete(batch)]


def failure(engine: LocalEngine) -> str | None:
    assert engine.inference.graphs is not None
    return engine.inference.graphs.failure


def requests_of(engine: LocalEngine, limits: list[int]) -> list[Prepared]:
    """Return a request for each of *limits*, the number of tokens of its reply."""
    return [
        as_request(
            engine, [("user", [number], "What is it?")], sampling=Sampling(max_new_tokens=limit)
        )
        for number, limit in enumerate(limits)
    ]


def test_every_bucket_is_recorded_once_and_gives_the_replies_of_the_cpu(
    open_on_gpu: OpenOnGpu, endless: EngineOf
) -> None:
    capture = CountingCapture()
    gpu, cpu = open_on_gpu(capture=capture), endless(KIND)
    # 11, 10, … and 1 rows are active. The last row goes on alone.
    limits = [*range(2, 12), 16]
    wanted = tokens(cpu, requests_of(cpu, limits))
    assert [len(reply) for reply in wanted] == limits
    for _ in range(2):
        assert tokens(gpu, requests_of(gpu, limits)) == wanted
    assert capture.recordings == [11, 8, 4, 2, 1]
    assert failure(gpu) is None


@pytest.mark.parametrize("kind", ["idefics", "idefics2", "smolvlm2"])
def test_buffers_that_grow_are_recorded_again(
    kind: str, open_on_gpu: OpenOnGpu, endless: EngineOf
) -> None:
    capture = CountingCapture()
    tuning = Tuning(block_tokens=16)
    gpu, cpu = open_on_gpu(kind, capture=capture, tuning=tuning), endless(kind)
    (wanted,) = tokens(cpu, requests_of(cpu, [60]))
    assert tokens(gpu, requests_of(gpu, [60])) == [wanted]
    # The buffers have room for the longest reply at once, so only the next, longer one grows them.
    first = len(capture.recordings)
    (longer,) = tokens(cpu, requests_of(cpu, [100]))
    assert tokens(gpu, requests_of(gpu, [100])) == [longer]
    assert len(capture.recordings) > first
    assert failure(gpu) is None


@pytest.mark.parametrize(
    ("fail", "error"), [(read_on_host, "Error"), (allocate_too_much, "OutOfMemoryError")]
)
def test_a_failed_recording_changes_no_reply_and_leaves_the_allocator_sound(
    fail: Callable[[Tensor], object], error: str, open_on_gpu: OpenOnGpu, endless: EngineOf
) -> None:
    gpu, cpu = open_on_gpu(capture=FailingCapture(fail)), endless(KIND)
    wanted = tokens(cpu, mixed_requests(cpu))
    for _ in range(2):
        assert tokens(gpu, mixed_requests(gpu)) == wanted
    reason = failure(gpu)
    assert reason is not None
    assert error in reason
    # In torch 2.11 and 2.12, this fails for ever if the allocator believes that it still records.
    torch.cuda.empty_cache()
    # Another engine of the process records its steps.
    other = open_on_gpu()
    assert tokens(other, mixed_requests(other)) == wanted
    assert failure(other) is None


def test_a_reply_that_ends_by_itself_ends_where_it_does_on_the_cpu(
    open_on_gpu: OpenOnGpu, endless: EngineOf, checkpoint: Callable[[str], Path]
) -> None:
    turns, sampling = CONVERSATIONS["one image"], Sampling(max_new_tokens=12)
    (reply,) = tokens(endless(KIND), [as_request(endless(KIND), turns, sampling=sampling)])
    stop_ids = {reply[4]}
    gpu = open_on_gpu(stop_ids=stop_ids)
    ends_too = partial(Inference, stop_ids=stop_ids)
    with open_engine(checkpoint(KIND), KIND, ends_too) as cpu:
        # The second time, the prompt is reused; a step that ran ahead must not be part of it.
        for _ in range(2):
            (given,) = gpu.complete([as_request(gpu, turns, sampling=sampling)])
            (wanted,) = cpu.complete([as_request(cpu, turns, sampling=sampling)])
            assert given.finish == "stop"
            assert given.token_ids == wanted.token_ids == reply[: len(wanted.token_ids)]
            assert given.reused_tokens == wanted.reused_tokens
        assert given.reused_tokens > 0
        assert tokens(gpu, mixed_requests(gpu)) == tokens(cpu, mixed_requests(cpu))
    assert failure(gpu) is None


def test_a_cancelled_reply_is_a_beginning_and_the_next_one_is_whole(
    open_on_gpu: OpenOnGpu, endless: EngineOf
) -> None:
    gpu, cpu = open_on_gpu(), endless(KIND)
    (request,), (same,) = requests_of(gpu, [200]), requests_of(cpu, [200])
    (whole,) = cpu.complete([same])
    cancel, text, chunks = Event(), "", []
    for chunk in gpu.stream(request, cancel=cancel):
        text += chunk.text
        chunks.append(chunk)
        if chunk.new_tokens >= 5:
            cancel.set()
    assert chunks[-1].finish == "cancelled"
    assert 5 <= chunks[-1].new_tokens < 200
    # The last letters of a reply can be a part of a character.
    assert whole.text.startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert tokens(gpu, [request]) == [whole.token_ids]
    assert failure(gpu) is None


def test_memory_that_held_nan_before_changes_no_reply(
    open_on_gpu: OpenOnGpu, endless: EngineOf
) -> None:
    gpu, cpu = open_on_gpu(), endless(KIND)
    # The allocator gives these blocks to the next tensors.
    blocks = [torch.full((size,), torch.nan, device=DEVICE) for size in [2**8, 2**16, 2**24] * 20]
    del blocks
    assert tokens(gpu, mixed_requests(gpu)) == tokens(cpu, mixed_requests(cpu))
    assert failure(gpu) is None
