"""Continuous batching: requests that share slots get the replies that each gets alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Cache

from idefics_cli.core.errors import ContextError, MemoryLimitError, ModelError
from idefics_cli.core.types import Completion, Sampling
from idefics_cli.engine.local.decode.batch_decoder import BatchDecoder
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.sampling import Scores
from idefics_cli.engine.local.decode.slots import Slots
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.serving.schedule import RequestSchedule
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.base import Inputs
from idefics_cli.models.families.protocols import Model, StepOutput
from idefics_cli.models.loading.loader import Loaded
from tests.support import tiny
from tests.support.prompts import (
    CONVERSATIONS,
    as_request,
    ask,
    endless_inference,
    open_engine,
    reopen,
)
from tests.support.recording import gpu_inference
from tests.support.serving import LIMITS, Outcomes, serve, serve_all, tokens_of

EngineOf = Callable[[str], LocalEngine]
Alone = Callable[[str, Sequence[Sampling]], list[tuple[int, ...]]]
NAMES = tuple(CONVERSATIONS)
GREEDY = (Sampling(),)
MIXED = (*GREEDY, Sampling(temperature=1.0, seed=3))
SERVING = "idefics_cli.engine.local.serving.giving_way"


def mixed(engine: LocalEngine, samplings: Sequence[Sampling] = GREEDY) -> list[Prepared]:
    """Return requests with none to three pictures, whose replies are of many lengths.

    *samplings* take turns.
    """
    return [
        as_request(
            engine,
            CONVERSATIONS[NAMES[number % len(NAMES)]],
            sampling=replace(samplings[number % len(samplings)], max_new_tokens=limit),
        )
        for number, limit in enumerate(LIMITS)
    ]


@pytest.fixture(scope="module")
def alone(checkpoint: Callable[[str], Path]) -> Iterator[Alone]:
    """Return a function to the replies to `mixed` one by one, by engines that no test changes."""
    engines = {
        kind: open_engine(checkpoint(kind), kind, endless_inference) for kind in tiny.CHATTING
    }

    @cache
    def get(kind: str, samplings: Sequence[Sampling]) -> list[tuple[int, ...]]:
        engine = engines[kind]
        return [engine.complete([each])[0].token_ids for each in mixed(engine, samplings)]

    yield get
    for engine in engines.values():
        engine.close()


WAYS: dict[str, Callable[[Loaded], Inference]] = {
    "steps": endless_inference,
    "recorded steps": gpu_inference,
    "batches": partial(Inference, stop_ids=(), uses_slots=False),
}
"""How rows are decoded: in slots, in slots with recordings, or padded in batches."""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def served(endless: EngineOf, way: str) -> Iterator[EngineOf]:
    """Engines that decode in this *way*, on the models of `endless`."""
    engines: list[LocalEngine] = []

    def get(kind: str) -> LocalEngine:
        engines.append(reopen(endless(kind), WAYS[way]))
        return engines[-1]

    yield get
    for engine in engines:
        engine.close()


def messages_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of the server; the tokenizer warns of long prompts itself."""
    return [record.getMessage() for record in caplog.records if record.name == SERVING]


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_each_request_gets_what_it_gets_alone(
    kind: str,
    served: EngineOf,
    alone: Alone,
    way: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, SERVING)
    if way != "steps" and kind in ("idefics2-split", "idefics3", "smolvlm"):
        pytest.skip("as idefics2 and smolvlm2")
    engine = served(kind)
    requests, expected = mixed(engine, MIXED), alone(kind, MIXED)
    for slots in (1, 3, 8) if kind == "idefics2" else (4,):
        assert tokens_of(serve_all(engine, requests, slots)) == expected
    graphs = engine.inference.graphs
    assert (graphs is None) == (way != "recorded steps")
    assert graphs is None or graphs.failure is None
    # No request was answered alone after a failure with the others.
    assert messages_of(caplog) == []


def test_a_long_reply_holds_no_other_back_and_requests_are_read_as_needed(
    endless: EngineOf,
) -> None:
    engine = endless("idefics2")
    long = as_request(engine, CONVERSATIONS["no image"], sampling=Sampling(max_new_tokens=400))
    short = as_request(engine, CONVERSATIONS["system"], sampling=Sampling(max_new_tokens=5))
    read = 0
    got: list[int] = []

    def requests() -> Iterator[Prepared]:
        nonlocal read
        for number in range(13):
            assert number - len(got) < 2
            read += 1
            yield short if number else long

    for index, _ in serve(engine, requests(), slots=2):
        got.append(index)
    assert read == 13
    assert got == [*range(1, 13), 0]


def test_one_prompt_that_is_too_long_fails_alone(
    served: EngineOf, alone: Alone, caplog: pytest.LogCaptureFixture
) -> None:
    engine = served("idefics2")
    requests = mixed(engine)
    outcomes = serve_all(engine, [*requests[:5], ask("word " * 600), *requests[5:]], slots=8)
    assert isinstance(outcomes.pop(5), ContextError)
    rest = [outcome for _, outcome in sorted(outcomes.items())]
    assert tokens_of(dict(enumerate(rest))) == alone("idefics2", GREEDY)
    # The error is the outcome of the request, so it is no warning.
    assert messages_of(caplog) == []


def test_one_reply_of_nan_fails_alone_and_warns_once(
    served: EngineOf,
    alone: Alone,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = served("idefics2")
    requests = mixed(engine)
    broken = as_request(engine, [("user", [], "Break!")], sampling=Sampling(max_new_tokens=9))
    ids = engine.loaded.family.encode([broken.request], [()])["input_ids"][0].tolist()
    choose_tokens = Scores.choose_tokens

    def break_one(self: Scores, rows: Sequence[BatchRow]) -> None:
        if any(row.prompt == ids and len(row.tokens) == 3 for row in rows):
            raise ModelError("out of range")
        choose_tokens(self, rows)

    monkeypatch.setattr(Scores, "choose_tokens", break_one)
    outcomes = serve_all(engine, [requests[0], broken, *requests[1:]], slots=4)
    assert isinstance(outcomes.pop(1), ModelError)
    rest = [outcome for _, outcome in sorted(outcomes.items())]
    assert tokens_of(dict(enumerate(rest))) == alone("idefics2", GREEDY)
    (message,) = messages_of(caplog)
    assert "one by one" in message
    assert message.endswith("ModelError: out of range")


def test_a_failure_while_others_are_admitted_loses_no_reply(
    served: EngineOf,
    alone: Alone,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if way == "batches":
        pytest.skip("no rows are admitted")
    engine = served("idefics2")
    failures = 0
    settle = BatchDecoder.settle

    def fail_twice(self: BatchDecoder, rows: Sequence[BatchRow]) -> None:
        nonlocal failures
        if rows and failures < 2:
            failures += 1
            raise ModelError("out of range")
        settle(self, rows)

    monkeypatch.setattr(BatchDecoder, "settle", fail_twice)
    assert tokens_of(serve_all(engine, mixed(engine), slots=4)) == alone("idefics2", GREEDY)
    assert failures == 2
    # Every request has its reply, so only one warning shows that some were answered twice.
    (message,) = messages_of(caplog)
    assert "one by one" in message
    assert message.endswith("ModelError: out of range")


def test_nan_stays_with_the_reply_that_it_came_from(
    served: EngineOf, alone: Alone, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, SERVING)
    if way != "recorded steps":
        pytest.skip("no buffers are kept")
    engine = served("idefics2")
    expected = alone("idefics2", GREEDY)
    assert tokens_of(serve_all(engine, mixed(engine), slots=4)) == expected
    with torch.inference_mode():
        slots = engine.inference.take_slots(4)
        assert len(slots.cache.layers) > 0
        for layer in slots.cache.layers:
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)
    assert tokens_of(serve_all(engine, mixed(engine), slots=4)) == expected
    # No request had to be answered alone.
    assert messages_of(caplog) == []


class FewRows:
    """Memory for two rows at a time: `check` raises for more.

    Attributes:
        most: The highest number of rows that fitted.
    """

    def __init__(self) -> None:
        self.most = 0

    def check(self, rows: int) -> None:
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.most = max(self.most, rows)

    def limit_prefill(self, monkeypatch: pytest.MonkeyPatch, engine: LocalEngine) -> None:
        family = engine.loaded.family
        forward = family.forward

        def checked(
            model: Model, inputs: Inputs, cache: Cache, *, mask: Tensor | None, positions: Tensor
        ) -> StepOutput:
            rows, length = positions.shape
            if length > 1:
                self.check(rows)
            return forward(model, inputs, cache, mask=mask, positions=positions)

        monkeypatch.setattr(family, "forward", checked)

    def limit_slots(self, monkeypatch: pytest.MonkeyPatch, engine: LocalEngine) -> None:
        admit_rows = Slots.admit_rows

        def checked(
            slots: Slots,
            cache: Cache,
            lengths: Sequence[int],
            extra: Inputs,
            *,
            shared: int = 0,
            releases: bool = False,
        ) -> None:
            self.check(len(slots) + len(lengths))
            admit_rows(slots, cache, lengths, extra, shared=shared, releases=releases)

        monkeypatch.setattr(Slots, "admit_rows", checked)

    def limit_steps(self, monkeypatch: pytest.MonkeyPatch, engine: LocalEngine) -> None:
        choose_tokens = Scores.choose_tokens

        def checked(scores: Scores, rows: Sequence[BatchRow]) -> None:
            self.check(len(rows))
            choose_tokens(scores, rows)

        monkeypatch.setattr(Scores, "choose_tokens", checked)


@pytest.mark.parametrize("limit", [FewRows.limit_prefill, FewRows.limit_slots, FewRows.limit_steps])
def test_less_memory_means_fewer_at_a_time_and_the_same_replies(
    limit: Callable[[FewRows, pytest.MonkeyPatch, LocalEngine], None],
    served: EngineOf,
    alone: Alone,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if limit is FewRows.limit_slots and way == "batches":
        pytest.skip("no rows are admitted")
    engine = served("idefics2")
    memory = FewRows()
    limit(memory, monkeypatch, engine)
    expected = alone("idefics2", GREEDY)
    assert tokens_of(serve_all(engine, mixed(engine), slots=16)) == expected
    assert memory.most == 2


def test_a_request_that_does_not_fit_alone_has_that_as_its_outcome(
    served: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = served("idefics2")

    def run_out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Scores, "choose_tokens", run_out_of_memory)
    outcomes = serve_all(engine, mixed(engine), slots=4)
    assert len(outcomes) == len(LIMITS)
    assert {type(outcome) for outcome in outcomes.values()} == {MemoryLimitError}


def test_cancelling_ends_active_replies_and_starts_none(served: EngineOf) -> None:
    engine = served("idefics2")
    long = as_request(engine, CONVERSATIONS["no image"], sampling=Sampling(max_new_tokens=300))
    short = as_request(engine, CONVERSATIONS["no image"], sampling=Sampling(max_new_tokens=2))
    cancel = threading.Event()
    outcomes: Outcomes = {}
    for index, outcome in serve(engine, [short, *[long] * 50], slots=3, cancel=cancel):
        outcomes[index] = outcome
        cancel.set()
    finishes = [o.finish for o in outcomes.values() if isinstance(o, Completion)]
    assert finishes == ["length"] + ["cancelled"] * (len(outcomes) - 1)
    assert len(outcomes) <= 7
    assert engine.complete([short])[0].new_tokens == 2


def test_who_stops_listening_stops_the_work(served: EngineOf) -> None:
    engine = served("idefics2")
    requests = mixed(engine)
    run = serve(engine, requests * 100, slots=3)
    next(run)
    run.close()
    assert engine.complete([requests[1]])[0].new_tokens == LIMITS[1]


def test_an_error_of_the_iterator_of_requests_reaches_the_caller(served: EngineOf) -> None:
    engine = served("idefics2")
    requests = mixed(engine)

    def broken() -> Iterator[Prepared]:
        yield from requests[:4]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(serve(engine, broken(), slots=2))
    assert engine.complete([requests[1]])[0].new_tokens == LIMITS[1]


def test_an_error_of_the_schedule_ends_the_run(
    endless: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = endless("idefics2")

    def fail(*_: object) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(RequestSchedule, "choose", fail)
    with pytest.raises(ZeroDivisionError, match="deep inside"):
        list(serve(engine, mixed(engine), slots=2))


def test_no_requests_have_no_outcomes(served: EngineOf) -> None:
    assert serve_all(served("idefics2"), []) == {}
