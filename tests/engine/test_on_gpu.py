"""A CUDA device gives the replies of the CPU, with CUDA graphs and a side stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Prepared
from tests.support import tiny
from tests.support.prompts import (
    CONVERSATIONS,
    as_request,
    endless_inference,
    mixed_requests,
    open_engine,
)
from tests.support.serving import LIMITS, Outcomes, serve_all, tokens_of

EngineOf = Callable[[str], LocalEngine]
DEVICE = "cuda:0"
SLOTS = 4

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch TF32 off in convolutions; in matrix products it is off by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def on_gpu(checkpoint: Callable[[str], Path]) -> Iterator[EngineOf]:
    """Return a function from a kind to its engine on the GPU."""
    engines: list[LocalEngine] = []

    def get(kind: str) -> LocalEngine:
        engines.append(open_engine(checkpoint(kind), kind, endless_inference, device=DEVICE))
        return engines[-1]

    yield get
    for engine in engines:
        engine.close()


def tokens(engine: LocalEngine, batch: list[Prepared]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in engine.complete(batch)]


def assert_all_paths_are_on(engine: LocalEngine) -> None:
    """Fail if CUDA graphs or the side stream were switched off by an error."""
    assert engine.inference.graphs is not None
    assert engine.inference.graphs.failure is None
    assert engine.inference.look_ahead.is_on


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_gpu_gives_the_replies_of_the_cpu(kind: str, on_gpu: EngineOf, endless: EngineOf) -> None:
    gpu, cpu = on_gpu(kind), endless(kind)
    for turns in CONVERSATIONS.values():
        assert tokens(gpu, [as_request(gpu, turns)]) == tokens(cpu, [as_request(cpu, turns)])
    drawn = Sampling(temperature=1.0, seed=3)
    for sampling in (Sampling(), drawn, replace(drawn, top_k=20, top_p=0.9)):
        together = tokens(gpu, mixed_requests(gpu, sampling))
        assert together == tokens(cpu, mixed_requests(cpu, sampling))
    assert_all_paths_are_on(gpu)


@pytest.mark.parametrize("kind", ["idefics", "idefics2", "smolvlm2"])
def test_requests_that_share_slots_on_a_gpu_get_the_replies_of_the_cpu(
    kind: str, on_gpu: EngineOf, endless: EngineOf
) -> None:
    gpu, cpu = on_gpu(kind), endless(kind)

    def requests(engine: LocalEngine) -> list[Prepared]:
        return [
            as_request(
                engine,
                [("user", [number], "What is it?")],
                sampling=Sampling(max_new_tokens=limit),
            )
            for number, limit in enumerate(LIMITS)
        ]

    outcomes: Outcomes = {}
    with gpu.serve(slots=SLOTS) as session:
        # More requests than slots, so that pictures are encoded while others are answered.
        session.put_requests(requests(gpu))
        while len(outcomes) < len(LIMITS):
            outcome = session.get_outcome()
            assert outcome is not None
            outcomes[outcome[0]] = outcome[1]
    assert tokens_of(outcomes) == tokens_of(serve_all(cpu, requests(cpu), 1))
    assert_all_paths_are_on(gpu)


def test_closing_an_engine_frees_the_memory_of_the_gpu(
    checkpoint: Callable[[str], Path],
) -> None:
    before = torch.cuda.memory_allocated(DEVICE)
    engine = open_engine(checkpoint("idefics2"), "idefics2", device=DEVICE)
    assert torch.cuda.memory_allocated(DEVICE) > before
    tokens(engine, mixed_requests(engine))
    engine.close()
    assert torch.cuda.memory_allocated(DEVICE) == before
