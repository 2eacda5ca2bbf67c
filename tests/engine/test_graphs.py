"""Recorded decode steps give the tokens of plain steps, and a failed recording changes none."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import pytest
import torch
from torch import Tensor

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.decode.graphs import Capture, graphs_problem, row_bucket
from idefics_cli.engine.local.decode.slots import rows_to_keep
from idefics_cli.engine.local.decode.steps import slots_problem
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.transfer import HostCopy
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.internals import attention_of
from idefics_cli.models.kernels.split_keys import SPLIT_KEYS
from tests.support import tiny
from tests.support.prompts import (
    CONVERSATIONS,
    REPLY_LIMITS,
    as_request,
    complete_with,
    endless_inference,
    mixed_requests,
    open_engine,
)
from tests.support.recording import CpuCapture, gpu_inference

EngineOf = Callable[[str], LocalEngine]
SLIDING = "idefics2-sliding"


@pytest.fixture(scope="module")
def sliding(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalEngine]:
    """An engine with a sliding window of twelve tokens."""
    folder, copy = checkpoint("idefics2"), tmp_path_factory.mktemp("sliding")
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["sliding_window"] = 12
    (copy / "config.json").write_text(json.dumps(config))
    with open_engine(copy, "idefics2", endless_inference) as engine:
        yield engine


@pytest.fixture
def engine_of(endless: EngineOf, sliding: LocalEngine) -> EngineOf:
    return lambda kind: sliding if kind == SLIDING else endless(kind)


def tokens(inference: Inference, batch: Sequence[Prepared]) -> list[list[int]]:
    return [list(answer.token_ids) for answer in complete_with(inference, batch)]


def kept_count(inference: Inference, prepared: Prepared, reply: Sequence[int]) -> int:
    """Return how many tokens of a prompt and its reply have states for a next turn."""
    family = inference.loaded.family
    ids = family.encode([prepared.request], [prepared.pictures])["input_ids"][0].tolist()
    keys = [*family.prefix_keys(ids, prepared.pictures), *reply]
    cache, count = inference.prefix.take_prefix([*keys, -1])
    inference.prefix.keep_prefix(keys, cache)
    return count


def plain_tokens(engine: LocalEngine, batch: Sequence[Prepared]) -> list[list[int]]:
    return [list(answer.token_ids) for answer in engine.complete(batch)]


def has_failed(inference: Inference) -> bool:
    assert inference.graphs is not None
    return inference.graphs.failure is not None


@pytest.mark.parametrize("kind", [*tiny.LAYERED, SLIDING])
def test_recorded_steps_give_the_plain_loops_tokens(kind: str, engine_of: EngineOf) -> None:
    engine = engine_of(kind)
    capture = CpuCapture()
    inference = gpu_inference(engine.loaded, capture=capture)
    for sampling in (Sampling(), Sampling(temperature=1.0, seed=3)):
        batch = mixed_requests(engine, sampling)
        assert tokens(inference, batch) == plain_tokens(engine, batch)
    assert not has_failed(inference)
    # 4, 3, 2 and 1 rows are active; 3 rows use the recording of 4. The reply of one token ends in
    # the prefill.
    assert len(capture.recordings) == 3
    assert capture.replays == 2 * (max(REPLY_LIMITS.values()) - 1)


@pytest.mark.parametrize("kind", ["idefics", "idefics2", "smolvlm2"])
def test_recordings_serve_later_requests_and_later_turns(kind: str, engine_of: EngineOf) -> None:
    engine = engine_of(kind)
    capture = CpuCapture()
    inference = gpu_inference(engine.loaded, capture=capture)
    for name in ("one image", "no image", "two images", "later turns", "no image"):
        prepared = as_request(engine, CONVERSATIONS[name])
        (answer,) = engine.complete([prepared])
        assert tokens(inference, [prepared]) == [list(answer.token_ids)]
        # The cache that is kept for the next turn holds the reply too.
        (again,) = complete_with(inference, [prepared])
        assert again.reused_tokens == answer.prompt_tokens - 1
        assert again.token_ids == answer.token_ids
        count = kept_count(inference, prepared, answer.token_ids)
        assert count == answer.prompt_tokens + answer.new_tokens - 1
    # IDEFICS-1 has other buffers for two images than for one; the others have one recording.
    assert len(capture.recordings) == (2 if kind == "idefics" else 1)


@pytest.mark.parametrize("kind", ["idefics", "idefics2"])
def test_replies_that_end_by_themselves_end_alike_if_steps_run_ahead(
    kind: str, engine_of: EngineOf
) -> None:
    engine = engine_of(kind)
    prepared = as_request(engine, CONVERSATIONS["one image"], sampling=Sampling(max_new_tokens=12))
    (answer,) = engine.complete([prepared])
    stop_ids = {answer.token_ids[4]}
    plain = Inference(engine.loaded, stop_ids=stop_ids)
    capture = CpuCapture()
    inference = gpu_inference(engine.loaded, capture=capture, stop_ids=stop_ids)

    (expected,) = tokens(plain, [prepared])
    assert len(expected) <= 5
    assert tokens(inference, [prepared]) == [expected]
    # There is a replay for each token but the first, and one more, which was started before the
    # last token was read.
    assert capture.replays == len(expected)
    # The cache for the next turn holds the tokens of the reply and no others.
    (again,) = complete_with(inference, [prepared])
    assert again.reused_tokens == answer.prompt_tokens - 1
    assert list(again.token_ids) == expected
    assert tokens(inference, mixed_requests(engine)) == tokens(plain, mixed_requests(engine))


def test_an_asynchronous_step_is_started_before_the_tokens_of_the_last_are_read(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("idefics2")
    events: list[str] = []
    create, read = HostCopy.__init__, HostCopy.tolist

    def watched_create(self: HostCopy, tensor: Tensor) -> None:
        events.append("started")
        create(self, tensor)

    def watched_read(self: HostCopy) -> list[list[float]]:
        events.append("read")
        return read(self)

    monkeypatch.setattr(HostCopy, "__init__", watched_create)
    monkeypatch.setattr(HostCopy, "tolist", watched_read)
    ways = [
        (
            Sampling(max_new_tokens=4),
            ["started", "read", "started", "started", "read", "started", "read", "read"],
        ),
        # The next token depends on numbers that only the host has.
        (Sampling(max_new_tokens=4, temperature=1.0, seed=3), ["started", "read"] * 4),
        (Sampling(max_new_tokens=4, repetition_penalty=1.5), ["started", "started", "read"] * 4),
    ]
    for sampling, expected in ways:
        events.clear()
        prepared = as_request(engine, CONVERSATIONS["one image"], sampling=sampling)
        tokens(gpu_inference(engine.loaded), [prepared])
        assert events == expected
    events.clear()
    engine.complete(
        [as_request(engine, CONVERSATIONS["no image"], sampling=Sampling(max_new_tokens=4))]
    )
    assert events == ["started", "read"] * 4


def test_a_reply_longer_than_the_buffers_makes_them_grow(engine_of: EngineOf) -> None:
    engine = engine_of("idefics2")
    capture = CpuCapture()
    inference = gpu_inference(engine.loaded, capture=capture, tuning=Tuning(block_tokens=16))
    batch = mixed_requests(engine)
    assert tokens(inference, batch) == plain_tokens(engine, batch)
    assert len(capture.recordings) > 3


def test_growing_buffers_double_up_to_the_longest_reply(engine_of: EngineOf) -> None:
    engine = engine_of("idefics2")
    capture = CpuCapture()
    tuning = Tuning(block_tokens=16, kv_bytes=2**22)
    inference = gpu_inference(engine.loaded, capture=capture, tuning=tuning)
    sampling = Sampling(max_new_tokens=200)
    prepared = as_request(engine, CONVERSATIONS["no image"], sampling=sampling)
    (answer,) = engine.complete([prepared])
    assert tokens(inference, [prepared]) == [list(answer.token_ids)]
    longest = answer.prompt_tokens + answer.new_tokens
    # Steps of 16 tokens would need 13 recordings.
    assert len(capture.recordings) == 1 + math.ceil(math.log2(longest / answer.prompt_tokens))
    with torch.inference_mode():
        assert inference.take_slots(1).capacity == -(-(longest + 1) // 16) * 16


def fail(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


def record_frozen(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a recording that does not read its inputs again."""
    output = function().clone()
    return lambda: output


def record_nan(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: torch.full_like(function(), torch.nan)


@pytest.mark.parametrize("capture", [fail, record_frozen, record_nan])
def test_a_recording_that_fails_or_is_wrong_is_replaced_by_plain_steps(
    capture: Capture, engine_of: EngineOf, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of("idefics2")
    inference = gpu_inference(engine.loaded, capture=capture)
    batch = mixed_requests(engine)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert tokens(inference, batch) == plain_tokens(engine, batch)
            # This happens when the memory runs out. The error is remembered, and no recording is
            # tried again.
            inference.drop_caches()
    assert inference.graphs is not None
    assert inference.graphs.failure is not None
    assert "\n" not in inference.graphs.failure
    assert len([r for r in caplog.records if "without CUDA graphs" in r.message]) == 1


def test_no_step_is_recorded_on_a_cpu(engine_of: EngineOf) -> None:
    engine = engine_of("idefics2")
    assert graphs_problem(engine.loaded.model) == "only CUDA records kernels"
    assert slots_problem(engine.loaded.model) is None
    assert engine.inference.graphs is None


class HasAttention(Protocol):
    """A model of transformers whose attention can be changed."""

    def set_attn_implementation(self, name: str) -> None: ...


@pytest.fixture
def _small_chunks() -> Iterator[None]:
    """Divide the keys into chunks so small that the buffers of these tests have four of them."""
    replace(SPLIT_KEYS, chunk=64).register()
    yield
    SPLIT_KEYS.register()


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("kind", [*tiny.LAYERED, SLIDING])
@pytest.mark.parametrize("attention", ["eager", "sdpa", SPLIT_KEYS.name])
def test_every_attention_with_masks_takes_rows_of_their_own_lengths(
    attention: str, kind: str, engine_of: EngineOf
) -> None:
    engine = engine_of(kind)
    model = cast("HasAttention", engine.loaded.model)
    before = attention_of(engine.loaded.model.config.get_text_config())
    batch = mixed_requests(engine)
    expected = plain_tokens(engine, batch)
    model.set_attn_implementation(attention)
    try:
        inference = gpu_inference(engine.loaded)
        assert tokens(inference, batch) == expected
        assert not has_failed(inference)
    finally:
        model.set_attn_implementation(before)


def test_batches_are_recorded_in_powers_of_two() -> None:
    buckets = [row_bucket(rows, 12) for rows in range(1, 13)]
    assert buckets == [1, 2, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12]


def test_the_last_rows_take_the_slots_of_those_that_ended() -> None:
    assert rows_to_keep([False, True, False, True, False]) == [0, 4, 2]
    assert rows_to_keep([True, True, False]) == [2]
    assert rows_to_keep([False, False]) == [0, 1]
    assert rows_to_keep([True]) == []


@pytest.mark.parametrize(
    "read", [float, bool, Tensor.item, torch.nonzero], ids=["float", "bool", "item", "nonzero"]
)
def test_a_recording_in_which_the_host_reads_a_result_fails(
    read: Callable[[Tensor], object],
) -> None:
    def step() -> Tensor:
        logits = torch.ones(3) * 2
        read(logits.sum())
        return logits

    with torch.inference_mode(), pytest.raises(RuntimeError, match="stream is capturing"):
        CpuCapture()(step)
