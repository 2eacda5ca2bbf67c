"""Recorded decode steps give the plain loop's tokens, and a failed recording costs nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.decode.graphs import bucket, graphs_problem
from idefics_cli.engine.local.decode.slots import kept_in_order
from idefics_cli.engine.local.decode.steps import slots_problem
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.transfer import Arrival
from tests.support import tiny
from tests.support.prompts import (
    CONVERSATIONS,
    REPLY_LIMITS,
    as_request,
    mixed_requests,
    open_engine,
)
from tests.support.recording import CpuCapture, like_on_a_gpu

EngineOf = Callable[[str], LocalEngine]
SLIDING = "idefics2-sliding"


@pytest.fixture(scope="module")
def sliding(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalEngine]:
    """An engine whose tokens see no further back than twelve."""
    folder, copy = checkpoint("idefics2"), tmp_path_factory.mktemp("sliding")
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["sliding_window"] = 12
    (copy / "config.json").write_text(json.dumps(config))
    with open_engine(copy, "idefics2") as engine:
        engine.loaded.family.stop_ids.clear()
        yield engine


@pytest.fixture
def engine_of(endless: EngineOf, sliding: LocalEngine) -> EngineOf:
    return lambda kind: sliding if kind == SLIDING else endless(kind)


def inference_of(engine: LocalEngine, capture: object) -> Inference:
    """An inference that records its steps by *capture*, as on a GPU."""
    return like_on_a_gpu(engine.loaded, capture)


class Never:
    def is_set(self) -> bool:
        return False


def tokens(inference: Inference, batch: list[object]) -> list[list[int]]:
    return [row.tokens for row in inference.answer(batch, Never()).rows]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [*tiny.CHATTING, SLIDING])
def test_recorded_steps_give_the_plain_loops_tokens(kind: str, engine_of: EngineOf) -> None:
    engine = engine_of(kind)
    capture = CpuCapture()
    inference = inference_of(engine, capture)
    for way in ({}, {"temperature": 1.0, "seed": 3}):
        batch = mixed_requests(engine, **way)
        assert tokens(inference, batch) == [list(a.token_ids) for a in engine.complete(batch)]
    assert inference._graphs.failure is None
    # 4, 3, 2 and 1 rows go on; 3 take the recording of 4. The first reply of one token is out.
    assert len(capture.recordings) == 3
    assert capture.replays == 2 * (max(REPLY_LIMITS.values()) - 1)


@pytest.mark.parametrize("kind", ["idefics", "idefics2", "smolvlm2"])
def test_what_was_recorded_serves_later_requests_and_their_turns(
    kind: str, engine_of: EngineOf
) -> None:
    engine = engine_of(kind)
    capture = CpuCapture()
    inference = inference_of(engine, capture)
    for name in ("one image", "no image", "two images", "later turns", "no image"):
        prepared = as_request(engine, CONVERSATIONS[name])
        (answer,) = engine.complete([prepared])
        assert tokens(inference, [prepared]) == [list(answer.token_ids)]
        # The cache that is kept for the next turn holds the reply too.
        again = inference.answer([prepared], Never())
        assert again.reused_tokens == answer.prompt_tokens - 1
        assert list(again.rows[0].tokens) == list(answer.token_ids)
        kept = inference._prefix
        assert len(kept._keys) == answer.prompt_tokens + answer.new_tokens - 1
    # Of one image IDEFICS-1 has other buffers than of two; the others have one recording.
    assert len(capture.recordings) == (2 if kind == "idefics" else 1)


@pytest.mark.parametrize("kind", ["idefics", "idefics2"])
def test_replies_that_end_by_themselves_end_alike_where_steps_run_ahead(
    kind: str, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(kind)
    family = engine.loaded.family
    prepared = as_request(engine, CONVERSATIONS["one image"], sampling=Sampling(max_new_tokens=12))
    (answer,) = engine.complete([prepared])
    monkeypatch.setattr(family, "stop_ids", {answer.token_ids[4]})
    capture = CpuCapture()
    inference = inference_of(engine, capture)

    expected = engine.complete([prepared])[0].token_ids
    assert len(expected) <= 5
    assert tokens(inference, [prepared]) == [list(expected)]
    # One for each token but the first, and one that was begun before the last was read.
    assert capture.replays == len(expected)
    # What is kept for the next turn is of its tokens and no others.
    again = inference.answer([prepared], Never())
    assert again.reused_tokens == answer.prompt_tokens - 1
    assert list(again.rows[0].tokens) == list(expected)
    assert tokens(inference, mixed_requests(engine)) == [
        list(each.token_ids) for each in engine.complete(mixed_requests(engine))
    ]


def test_a_step_that_is_quick_is_begun_before_the_tokens_of_the_last_are_read(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("idefics2")
    told: list[str] = []

    class Watched(Arrival):
        def __init__(self, tensor: Tensor) -> None:
            told.append("begun")
            super().__init__(tensor)

        def tolist(self) -> list[list[float]]:
            told.append("read")
            return super().tolist()

    monkeypatch.setattr("idefics_cli.engine.local.decode.sampling.Arrival", Watched)
    ways: list[tuple[dict[str, float], list[str]]] = [
        ({}, ["begun", "read", "begun", "begun", "read", "begun", "read", "read"]),
        # What comes next hangs on numbers that only the host has.
        ({"temperature": 1.0, "seed": 3}, ["begun", "read"] * 4),
        ({"repetition_penalty": 1.5}, ["begun", "begun", "read"] * 4),
    ]
    for way, expected in ways:
        told.clear()
        sampling = Sampling(max_new_tokens=4, **way)  # type: ignore[arg-type]
        prepared = as_request(engine, CONVERSATIONS["one image"], sampling=sampling)
        tokens(inference_of(engine, CpuCapture()), [prepared])
        assert told == expected
    told.clear()
    engine.complete(
        [as_request(engine, CONVERSATIONS["no image"], sampling=Sampling(max_new_tokens=4))]
    )
    assert told == ["begun", "read"] * 4


def test_a_reply_longer_than_the_buffers_makes_them_grow(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idefics_cli.engine.local.decode.slots._TOKENS", 16)
    engine = engine_of("idefics2")
    capture = CpuCapture()
    inference = inference_of(engine, capture)
    batch = mixed_requests(engine)
    assert tokens(inference, batch) == [list(a.token_ids) for a in engine.complete(batch)]
    assert len(capture.recordings) > 3


def fails(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


def is_frozen(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record what forgets to read its inputs."""
    output = function().clone()
    return lambda: output


def is_garbage(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: torch.full_like(function(), torch.nan)


@pytest.mark.parametrize("capture", [fails, is_frozen, is_garbage])
def test_a_recording_that_fails_or_is_off_is_given_up_for_the_plain_way(
    capture: object, engine_of: EngineOf, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of("idefics2")
    inference = inference_of(engine, capture)
    batch = mixed_requests(engine)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert tokens(inference, batch) == [list(a.token_ids) for a in engine.complete(batch)]
    assert inference._graphs.failure is not None
    assert "\n" not in inference._graphs.failure
    assert len([r for r in caplog.records if "without CUDA graphs" in r.message]) == 1


def test_nothing_is_recorded_where_it_cannot_be(engine_of: EngineOf) -> None:
    model = engine_of("idefics2").loaded.model
    assert graphs_problem(model) == "only CUDA records kernels"
    assert slots_problem(model) is None
    assert not engine_of("idefics2").inference._records


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_with_masks_takes_rows_of_their_own_lengths(
    attention: str, engine_of: EngineOf
) -> None:
    engine = engine_of("idefics2")
    loaded = engine.loaded
    before = loaded.model.model.text_model.config._attn_implementation  # type: ignore[attr-defined]
    batch = mixed_requests(engine)
    expected = [list(a.token_ids) for a in engine.complete(batch)]
    loaded.model.set_attn_implementation(attention)  # type: ignore[attr-defined]
    try:
        inference = inference_of(engine, CpuCapture())
        assert tokens(inference, batch) == expected
        assert inference._graphs.failure is None
    finally:
        loaded.model.set_attn_implementation(before)  # type: ignore[attr-defined]


def test_batches_are_recorded_in_powers_of_two() -> None:
    assert [bucket(rows, 12) for rows in range(1, 13)] == [1, 2, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12]


def test_the_last_rows_take_the_places_of_those_that_ended() -> None:
    assert kept_in_order([False, True, False, True, False]) == [0, 4, 2]
    assert kept_in_order([True, True, False]) == [2]
    assert kept_in_order([False, False]) == [0, 1]
    assert kept_in_order([True]) == []
