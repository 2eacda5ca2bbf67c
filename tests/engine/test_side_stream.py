"""Pictures that are encoded on a side stream while others are answered change no reply."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import Tensor

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.decode.graphs import CudaCapture
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.local.vision.side_stream import CudaSideStream
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.protocols import Model
from tests.support.prompts import as_request, prepared_pictures, reopen, tensors_of
from tests.support.recording import LateSideStream, gpu_inference
from tests.support.serving import LIMITS, Outcomes, serve_all, tokens_of

SLOTS = 4
Sizes = list[tuple[int, int]] | None


@dataclass(frozen=True)
class Served:
    """An engine with a side stream.

    Attributes:
        engine: The engine.
        side_stream: Its side stream.
        encoded: The number of tiles of every forward of the vision encoder.
        places: Where these forwards ran: True for the side stream.
    """

    engine: LocalEngine
    side_stream: LateSideStream
    encoded: list[int]
    places: list[bool]

    def requests(self) -> list[Prepared]:
        """Return requests with a picture of their own each, whose replies are of many lengths."""
        return [
            as_request(
                self.engine,
                [("user", [number], "What is it?")],
                sampling=Sampling(max_new_tokens=limit),
            )
            for number, limit in enumerate(LIMITS)
        ]

    def reply_one_by_one(self) -> list[tuple[int, ...]]:
        """Return the replies without look-ahead, and drop the features."""
        replies = tokens_of(serve_all(self.engine, self.requests(), 1))
        self.engine.inference.features.clear()
        return replies

    def reply_together(self) -> list[tuple[int, ...]]:
        """Serve more requests than there are slots, so that some wait; return their replies."""
        outcomes: Outcomes = {}
        requests = self.requests()
        with self.engine.serve(slots=SLOTS) as session:
            session.put_requests(requests)
            while len(outcomes) < len(requests):
                outcome = session.get_outcome()
                assert outcome is not None
                outcomes[outcome[0]] = outcome[1]
        return tokens_of(outcomes)


OpenServed = Callable[..., Served]


@pytest.fixture
def open_served(
    endless: Callable[[str], LocalEngine], monkeypatch: pytest.MonkeyPatch
) -> Iterator[OpenServed]:
    """Return a function that opens an engine with a side stream."""
    engines = []

    def open_one(error: Exception | None = None, tuning: Tuning | None = None) -> Served:
        side_stream = LateSideStream(error)
        make_inference = partial(gpu_inference, side_stream=side_stream, tuning=tuning)
        engine = reopen(endless("idefics2"), make_inference)
        engines.append(engine)
        encoded: list[int] = []
        places: list[bool] = []
        encode_tiles = engine.loaded.family.encode_tiles

        def watched(model: Model, tiles: Tensor, sizes: Sizes = None) -> Tensor:
            encoded.append(len(tiles))
            places.append(side_stream.is_current)
            return encode_tiles(model, tiles, sizes)

        monkeypatch.setattr(engine.loaded.family, "encode_tiles", watched)
        return Served(engine, side_stream, encoded, places)

    yield open_one
    for engine in engines:
        engine.close()


def test_pictures_of_waiting_requests_are_encoded_meanwhile_and_once(
    open_served: OpenServed,
) -> None:
    served = open_served()
    expected = served.reply_one_by_one()
    once = sum(served.encoded)
    assert served.side_stream.made == []
    served.encoded.clear()

    assert served.reply_together() == expected
    assert sum(served.side_stream.made) > 0
    assert served.side_stream.recorded == 2 * len(LIMITS)
    assert sum(served.encoded) == once


def test_all_pictures_are_encoded_in_the_memory_of_the_side_stream(open_served: OpenServed) -> None:
    served = open_served()
    served.reply_together()
    # Those of the first requests are waited for.
    assert len(served.places) > len(served.side_stream.made)
    assert all(served.places)
    assert not served.side_stream.is_current


def test_nothing_is_encoded_ahead_while_pictures_are_waited_for(open_served: OpenServed) -> None:
    served = open_served()
    look_ahead = served.engine.inference.look_ahead
    pieces = look_ahead.encode_pieces(tensors_of(served.engine, [0, 1]))
    can_start = [look_ahead.can_start]
    next(pieces)
    can_start.append(look_ahead.can_start)
    pieces.close()
    assert [*can_start, look_ahead.can_start] == [True, False, True]


def test_pictures_that_are_encoded_ahead_have_one_shape_and_fit_into_one_forward(
    open_served: OpenServed,
) -> None:
    engine = open_served().engine
    shapes = [prepared_pictures(engine, [number])[0].tile_sizes for number in range(9)]
    assert len(set(shapes[:3])) == 3
    assert shapes[0] == shapes[3] == shapes[6]
    pixels = prepared_pictures(engine, [0])[0].pixels

    served = open_served(tuning=Tuning(vision_pixels=2 * pixels))
    waiting = [as_request(served.engine, [("user", [number], "?")]) for number in (0, 1, 3, 6)]
    pictures = [each for request in waiting for each in served.engine.find_tensors(request)]
    for _ in range(5):
        with torch.inference_mode():
            served.engine.inference.look_ahead.start_encoding(pictures, threading.Event())
    assert served.encoded == [2, 1, 1]


def test_no_work_is_submitted_while_the_side_stream_is_busy(open_served: OpenServed) -> None:
    served = open_served()
    served.side_stream.is_busy = True
    assert len(served.reply_together()) == len(LIMITS)
    assert served.side_stream.made == []


def test_an_error_on_the_side_stream_fails_no_request_and_switches_it_off_with_a_warning(
    open_served: OpenServed, caplog: pytest.LogCaptureFixture
) -> None:
    served = open_served(torch.OutOfMemoryError("CUDA out of memory"))
    expected = served.reply_one_by_one()
    assert served.reply_together() == expected
    assert len(served.side_stream.made) == 1
    assert not served.engine.inference.look_ahead.is_on
    (message,) = caplog.messages
    assert message.startswith("encoding pictures without a side stream: ")
    assert message.endswith("CUDA out of memory")


def test_pictures_that_the_cache_cannot_hold_are_not_encoded_again_and_again(
    open_served: OpenServed,
) -> None:
    served = open_served(tuning=Tuning(feature_bytes=1))
    served.reply_together()
    # When their request starts, and once ahead if it has to wait.
    assert sum(served.encoded) <= 2 * len(LIMITS) - SLOTS, served.encoded
    # Every request has started, so that each picture may be encoded ahead again.
    served.encoded.clear()
    with torch.inference_mode():
        for request in served.requests():
            pictures = served.engine.find_tensors(request)
            served.engine.inference.look_ahead.start_encoding(pictures, threading.Event())
    assert len(served.encoded) == len(LIMITS)


@dataclass
class FakeStream:
    """A CUDA stream that records its calls, in order with those of other streams."""

    name: str
    calls: list[str] = field(default_factory=list)
    events: list[FakeEvent] = field(default_factory=list)

    def wait_stream(self, other: FakeStream) -> None:
        self.calls.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> FakeEvent:
        self.calls.append(f"{self.name} records an event")
        self.events.append(FakeEvent(self.name))
        return self.events[-1]

    def wait_event(self, event: FakeEvent) -> None:
        self.calls.append(f"{self.name} waits for the event of {event.name}")

    def __enter__(self) -> None:
        self.calls.append(f"on {self.name}:")

    def __exit__(self, *error: object) -> None:
        self.calls.append(f"off {self.name}")


@dataclass
class FakeEvent:
    """A CUDA event."""

    name: str
    has_passed: bool = False

    def query(self) -> bool:
        return self.has_passed


@dataclass
class FakeCuda:
    """The streams of a fake GPU.

    Attributes:
        calls: The calls of all streams, in order.
        events: The events that were recorded.
    """

    calls: list[str] = field(default_factory=list)
    events: list[FakeEvent] = field(default_factory=list)

    def stream(self, name: str) -> FakeStream:
        return FakeStream(name, self.calls, self.events)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Replace the streams and graphs of `torch.cuda` by fakes."""
    cuda = FakeCuda()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: cuda.stream("main"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: cuda.stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: cuda.calls.append("all wait"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: cuda.stream("graph"))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(
        "torch._C._cuda_endAllocateToPool",
        lambda device, pool: cuda.calls.append(f"cuda:{device} ends pool {pool}"),
    )
    return cuda


def test_streams_wait_for_each_other_also_when_the_work_fails(cuda: FakeCuda) -> None:
    side_stream = CudaSideStream(torch.device("cuda:0"))
    side_stream.join()
    assert (side_stream.is_busy, cuda.calls) == (False, [])

    side_stream.submit_work(lambda: cuda.calls.append("work"))
    side_stream.join()
    assert cuda.calls == [
        *("side waits for main", "on side:", "work", "side records an event", "off side"),
        "main waits for the event of side",
    ]
    is_busy = [side_stream.is_busy]
    cuda.events[-1].has_passed = True
    assert [*is_busy, side_stream.is_busy] == [True, False]

    cuda.calls.clear()
    side_stream.submit_work(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        side_stream.join()
    assert cuda.calls == ["side waits for main", "on side:", "off side", "all wait"]
    assert not side_stream.is_busy


def test_work_in_place_is_between_that_of_the_main_stream(cuda: FakeCuda) -> None:
    side_stream = CudaSideStream(torch.device("cuda:0"))
    with side_stream.in_place():
        cuda.calls.append("work")
    order = ["side waits for main", "on side:", "work", "off side", "main waits for side"]
    assert cuda.calls == order
    cuda.calls.clear()
    with pytest.raises(ZeroDivisionError), side_stream.in_place():
        1 / 0  # noqa: B018  # the error is wanted
    assert cuda.calls == [call for call in order if call != "work"]
    assert not side_stream.is_busy


def test_the_work_delays_nobody_before_join(cuda: FakeCuda) -> None:
    side_stream, may_end = CudaSideStream(torch.device("cuda:0")), threading.Event()
    side_stream.submit_work(lambda: may_end.wait(30))
    assert side_stream.is_busy
    may_end.set()
    side_stream.join()
    assert cuda.calls[-1] == "main waits for the event of side"


def test_a_recording_is_made_on_one_stream_which_is_left_also_when_it_fails(
    cuda: FakeCuda,
) -> None:
    capture = CudaCapture(torch.device("cuda:0"))

    def run() -> Tensor:
        cuda.calls.append("run")
        if cuda.calls.count("run") == 6:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    capture(run)
    begun = ["side waits for main", "on side:", "run", "run", "on graph:", "run", "off graph"]
    assert cuda.calls == [*begun, "off side", "main waits for side"]
    with pytest.raises(RuntimeError, match="not permitted"):
        capture(run)
    # The allocator is told too, or every later `empty_cache` fails (torch 2.11 and 2.12).
    assert cuda.calls[-3:] == ["off side", "cuda:1 ends pool (0, 7)", "main waits for side"]
