"""Pictures that are encoded while others are answered change no answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.decode.graphs import CudaCapture
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.vision.side_stream import CudaBeside
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.base import Family
from tests.support.prompts import as_request, prepared_pictures
from tests.support.recording import CpuCapture, LateBeside, like_on_a_gpu
from tests.support.serving import LIMITS, serve_all, tokens_of

SLOTS = 4
EngineOf = Callable[[str], LocalEngine]


@pytest.fixture
def engine(endless: EngineOf) -> Iterator[LocalEngine]:
    """An engine that encodes pictures beside its replies."""
    engine = endless("idefics2")
    before = engine._inference
    engine._inference = like_on_a_gpu(engine.loaded, CpuCapture())
    yield engine
    engine._inference = before


def asked(engine: LocalEngine) -> list[Prepared]:
    """Requests with a picture of their own each, whose replies are of many lengths."""
    return [
        as_request(
            engine,
            [("user", [number], "What is it?")],
            sampling=Sampling(max_new_tokens=limit),
        )
        for number, limit in enumerate(LIMITS)
    ]


def ran_at_once(engine: LocalEngine) -> list[tuple[int, ...]]:
    """Serve more requests than there are slots, so that some wait; return their replies."""
    outcomes = {}
    requests = asked(engine)
    with engine.serve(slots=SLOTS) as session:
        session.put_requests(requests)
        while len(outcomes) < len(requests) and (outcome := session.get_outcome()) is not None:
            outcomes[outcome[0]] = outcome[1]
    return tokens_of(outcomes)


def beside_of(engine: LocalEngine) -> LateBeside:
    beside = engine.inference._beside
    assert isinstance(beside, LateBeside)
    return beside


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, engine: LocalEngine) -> list[int]:
    """How many tiles the encoder was shown each time."""
    counts: list[int] = []
    family = type(engine.loaded.family)
    see = family.encode_tiles

    def watched(self: Family, model: object, tiles: torch.Tensor, *more: object) -> torch.Tensor:
        counts.append(len(tiles))
        return see(self, model, tiles, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(family, "encode_tiles", watched)
    return counts


def test_pictures_of_requests_that_wait_are_encoded_meanwhile_and_once(
    engine: LocalEngine, seen: list[int]
) -> None:
    expected = tokens_of(serve_all(engine, asked(engine), 1))
    once = sum(seen)
    assert beside_of(engine).made == []
    seen.clear()
    engine.inference._features.clear()

    assert ran_at_once(engine) == expected
    assert sum(beside_of(engine).made) > 0
    assert beside_of(engine).borrowed == 2 * len(LIMITS)
    assert sum(seen) == once


def test_what_is_encoded_at_a_time_is_of_one_shape_and_no_more_than_one_forward(
    engine: LocalEngine, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inference, cancel = engine.inference, threading.Event()
    inference._features.clear()
    shapes = [prepared_pictures(engine, [number])[0].tile_sizes for number in range(9)]
    assert len(set(shapes[:3])) == 3
    assert shapes[0] == shapes[3] == shapes[6]
    inference._features.clear()
    waiting = [as_request(engine, [("user", [number], "?")]) for number in (0, 1, 3, 6)]
    pixels = waiting[0].pictures[0].pixels
    monkeypatch.setattr("idefics_cli.engine.local.inference.GPU_PIXELS", 2 * pixels)
    for _ in range(5):
        with torch.inference_mode():
            inference.look_ahead(waiting, cancel)
    assert seen == [2, 1, 1]


def test_nothing_more_is_begun_while_the_device_is_still_at_it(engine: LocalEngine) -> None:
    beside_of(engine).is_busy = True
    assert len(ran_at_once(engine)) == len(asked(engine))
    assert beside_of(engine).made == []


def test_what_fails_meanwhile_fails_nobody_and_is_tried_no_more(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokens_of(serve_all(engine, asked(engine), 1))
    inference = engine.inference
    inference._features.clear()
    tried = 0

    def full(*args: object, **options: object) -> None:
        nonlocal tried
        tried += 1
        encode(*args, **options)
        raise torch.OutOfMemoryError("CUDA out of memory")

    encode = inference._encode_ahead
    monkeypatch.setattr(inference, "_encode_ahead", full)
    assert ran_at_once(engine) == expected
    assert tried == 1
    assert inference._beside is None


def test_pictures_of_which_few_are_kept_are_not_encoded_again_and_again(
    engine: LocalEngine, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inference = engine.inference
    monkeypatch.setattr(inference._features, "_max_bytes", 1)
    ran_at_once(engine)
    # When their turn comes, and before that those that do not begin at once.
    assert sum(seen) <= 2 * len(LIMITS) - SLOTS, seen
    assert inference._begun == set()


@dataclass
class Stream:
    """A stream of CUDA that notes what it is told, in order with the others."""

    name: str
    told: list[str] = field(default_factory=list)

    def wait_stream(self, other: Stream) -> None:
        self.told.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> Note:
        self.told.append(f"{self.name} notes")
        return Note(self.name)

    def wait_event(self, event: Note) -> None:
        self.told.append(f"{self.name} waits for the note of {event.name}")

    def __enter__(self) -> None:
        self.told.append(f"on {self.name}:")

    def __exit__(self, *error: object) -> None:
        self.told.append(f"off {self.name}")


@dataclass
class Note:
    """An event of CUDA."""

    name: str
    is_over: bool = False

    def query(self) -> bool:
        return self.is_over


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What streams are told, where there are some."""
    told: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream("main", told))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: Stream("side", told))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append("all wait"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Stream("graph", told))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: graph)
    return told


def test_streams_wait_for_each_other_also_when_the_work_fails(told: list[str]) -> None:
    beside = CudaBeside(torch.device("cuda:0"))
    beside.join()
    assert (beside.is_busy, told) == (False, [])

    beside.begin(lambda: told.append("work"))
    beside.join()
    assert told == [
        *("side waits for main", "on side:", "work", "side notes", "off side"),
        "main waits for the note of side",
    ]
    assert beside._job is not None
    assert beside.is_busy
    beside._job.result().is_over = True  # type: ignore[attr-defined]
    assert not beside.is_busy

    told.clear()
    beside.begin(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        beside.join()
    assert told == ["side waits for main", "on side:", "off side", "all wait"]
    assert not beside.is_busy


def test_the_work_holds_up_nobody_who_does_not_join(told: list[str]) -> None:
    beside, may_end = CudaBeside(torch.device("cuda:0")), threading.Event()
    beside.begin(lambda: may_end.wait(30))
    assert beside.is_busy
    may_end.set()
    beside.join()
    assert told[-1] == "main waits for the note of side"


def test_a_recording_is_made_on_one_stream_which_is_left_also_when_it_fails(
    told: list[str],
) -> None:
    capture = CudaCapture(torch.device("cuda:0"))

    def run() -> torch.Tensor:
        told.append("run")
        if told.count("run") == 6:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    capture(run)
    begun = ["side waits for main", "on side:", "run", "run", "on graph:", "run", "off graph"]
    assert told == [*begun, "off side", "main waits for side"]
    with pytest.raises(RuntimeError, match="not permitted"):
        capture(run)
    assert told[-1] == "off side"
