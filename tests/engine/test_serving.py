"""Slots that are filled again as replies end give each request what it gets alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from idefics_cli.core.errors import ContextError, MemoryLimitError, ModelError
from idefics_cli.core.types import Completion, Sampling
from idefics_cli.engine.local.decode.sampling import BatchRow, Scores
from idefics_cli.engine.local.decode.slots import Slots
from idefics_cli.engine.local.decode.token_loop import BatchDecoder
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.prompt.prefill import prefill
from idefics_cli.engine.protocol import Prepared
from tests.support import tiny
from tests.support.prompts import CONVERSATIONS, as_request, ask, open_engine
from tests.support.recording import CpuCapture, like_on_a_gpu
from tests.support.serving import LIMITS, Outcomes, serve, serve_all, tokens_of

EngineOf = Callable[[str], LocalEngine]
NAMES = tuple(CONVERSATIONS)


def asked(engine: LocalEngine, **ways: object) -> list[Prepared]:
    """Requests with none to three pictures, whose replies are of many lengths."""
    sampling = Sampling(**ways)  # type: ignore[arg-type]
    return [
        as_request(
            engine,
            CONVERSATIONS[NAMES[number % len(NAMES)]],
            sampling=replace(sampling, max_new_tokens=limit),
        )
        for number, limit in enumerate(LIMITS)
    ]


Alone = Callable[..., list[tuple[int, ...]]]


@pytest.fixture(scope="module")
def alone(checkpoint: Callable[[str], Path]) -> Iterator[Alone]:
    """Return what gives the replies to `asked` one by one: by engines that no test changes."""
    engines = {kind: open_engine(checkpoint(kind), kind) for kind in tiny.CHATTING}

    @cache
    def get(kind: str, **ways: object) -> list[tuple[int, ...]]:
        engine = engines[kind]
        engine.loaded.family.stop_ids.clear()
        return [engine.complete([each])[0].token_ids for each in asked(engine, **ways)]

    yield get
    for engine in engines.values():
        engine.close()


@pytest.fixture(params=["steps", "recorded steps", "batches"])
def way(request: pytest.FixtureRequest) -> str:
    """How rows go on: in slots, in slots with recordings, or padded in batches."""
    return str(request.param)


@pytest.fixture
def served(endless: EngineOf, way: str) -> Iterator[Callable[[str], LocalEngine]]:
    """The engines with an inference that goes the *way*."""
    changed: list[tuple[LocalEngine, Inference]] = []

    def get(kind: str) -> LocalEngine:
        engine = endless(kind)
        changed.append((engine, engine.inference))
        if way == "recorded steps":
            engine._inference = like_on_a_gpu(engine.loaded, CpuCapture())
        else:
            engine._inference = Inference(engine.loaded)
            engine._inference.slots_problem = "none" if way == "batches" else None
        return engine

    yield get
    for engine, inference in reversed(changed):
        engine._inference = inference


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_each_request_gets_what_it_gets_alone(
    kind: str,
    served: EngineOf,
    alone: Alone,
    way: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "idefics_cli.engine.local.serving")
    if way != "steps" and kind in ("idefics2-split", "idefics3", "smolvlm"):
        pytest.skip("as idefics2 and smolvlm2")
    engine = served(kind)
    for sampling in ({}, {"temperature": 1.0, "seed": 3}):
        requests = asked(engine, **sampling)
        expected = alone(kind, **sampling)
        for slots in (1, 3, 8) if kind == "idefics2" and not sampling else (4,):
            assert tokens_of(serve_all(engine, requests, slots)) == expected
    assert engine.inference._graphs.failure is None
    # None was answered alone after all, because it failed with the others.
    assert caplog.messages == []


def test_a_long_reply_holds_no_other_back_and_requests_are_read_as_needed(
    endless: EngineOf,
) -> None:
    engine = endless("idefics2")
    long = as_request(engine, CONVERSATIONS["no image"], sampling=Sampling(max_new_tokens=150))
    short = as_request(engine, CONVERSATIONS["system"], sampling=Sampling(max_new_tokens=5))
    read, got = 0, []

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


def test_one_prompt_that_is_too_long_fails_alone(served: EngineOf, alone: Alone) -> None:
    engine = served("idefics2")
    requests = asked(engine)
    expected = alone("idefics2")
    outcomes = serve_all(engine, [*requests[:5], ask("word " * 600), *requests[5:]], slots=8)
    assert isinstance(outcomes.pop(5), ContextError)
    rest = [outcome for _, outcome in sorted(outcomes.items())]
    assert tokens_of(dict(enumerate(rest))) == expected


def test_one_reply_that_is_no_number_fails_alone(
    served: EngineOf, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = served("idefics2")
    requests = asked(engine)
    expected = alone("idefics2")
    broken = as_request(engine, [("user", [], "Break!")], sampling=Sampling(max_new_tokens=9))
    ids = engine.loaded.family.encode([broken.request], [()])["input_ids"][0].tolist()

    def breaks(self: Scores, rows: Sequence[BatchRow], stop_ids: AbstractSet[int]) -> None:
        if any(row.prompt == ids and len(row.tokens) == 3 for row in rows):
            raise ModelError("out of range")
        choose(self, rows, stop_ids)

    choose = Scores.choose
    monkeypatch.setattr(Scores, "choose", breaks)
    outcomes = serve_all(engine, [*requests, broken], slots=4)
    assert isinstance(outcomes.pop(len(requests)), ModelError)
    assert tokens_of(outcomes) == expected


def test_what_fails_while_others_come_in_loses_nobody(
    served: EngineOf, alone: Alone, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "batches":
        pytest.skip("nothing is admitted")
    engine = served("idefics2")
    expected = alone("idefics2")
    failed = 0

    def fails(self: BatchDecoder, rows: Sequence[BatchRow]) -> None:
        nonlocal failed
        if rows and not failed:
            failed = len(rows)
            raise ModelError("out of range")
        settle(self, rows)

    settle = BatchDecoder.settle
    monkeypatch.setattr(BatchDecoder, "settle", fails)
    assert tokens_of(serve_all(engine, asked(engine), slots=4)) == expected
    assert failed


def test_what_is_no_number_stays_with_the_reply_that_it_came_from(
    served: EngineOf, alone: Alone, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "idefics_cli.engine.local.serving")
    if way != "recorded steps":
        pytest.skip("no buffers are kept")
    engine = served("idefics2")
    expected = alone("idefics2")
    assert tokens_of(serve_all(engine, asked(engine), slots=4)) == expected
    slots = engine.inference._slots
    assert slots is not None
    with torch.inference_mode():
        for layer in slots.cache.layers:
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)
    assert tokens_of(serve_all(engine, asked(engine), slots=4)) == expected
    # None had to be answered alone.
    assert caplog.messages == []


@pytest.mark.parametrize("at", ["prefill", "admit", "step"])
def test_less_memory_means_fewer_at_a_time_and_the_same_replies(
    at: str, served: EngineOf, alone: Alone, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = served("idefics2")
    requests = asked(engine)
    expected = alone("idefics2")
    most = 0

    def check(rows: int) -> None:
        nonlocal most
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        most = max(most, rows)

    def checked_prefill(model: object, family: object, prompt: object, *more: object, **options):  # type: ignore[no-untyped-def]
        check(len(prompt.inputs["input_ids"]))  # type: ignore[attr-defined]
        return prefill(model, family, prompt, *more, **options)  # type: ignore[arg-type]

    admit = Slots.admit

    def checked_admit(self: Slots, cache: object, mask: object, *more: object, **options: bool):  # type: ignore[no-untyped-def]
        check(len(self) + len(mask))  # type: ignore[arg-type]
        admit(self, cache, mask, *more, **options)  # type: ignore[arg-type]

    def checked_choose(self: Scores, rows: Sequence[BatchRow], stop_ids: AbstractSet[int]) -> None:
        check(len(rows))
        choose(self, rows, stop_ids)

    choose = Scores.choose

    if at == "prefill":
        monkeypatch.setattr("idefics_cli.engine.local.decode.token_loop.prefill", checked_prefill)
        monkeypatch.setattr("idefics_cli.engine.local.serving.prefill", checked_prefill)
    elif at == "admit":
        if way == "batches":
            pytest.skip("nothing is admitted")
        monkeypatch.setattr(Slots, "admit", checked_admit)
    else:
        monkeypatch.setattr(Scores, "choose", checked_choose)
    assert tokens_of(serve_all(engine, requests, slots=16)) == expected
    assert most == 2


def test_what_does_not_fit_alone_is_the_outcome_of_each(
    served: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = served("idefics2")

    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Scores, "choose", full)
    outcomes = serve_all(engine, asked(engine), slots=4)
    assert len(outcomes) == len(LIMITS)
    assert {type(outcome) for outcome in outcomes.values()} == {MemoryLimitError}


def test_cancelling_ends_what_was_begun_and_begins_nothing(served: EngineOf) -> None:
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
    requests = asked(engine, max_new_tokens=9)
    run = serve(engine, requests * 100, slots=3)
    next(run)
    run.close()
    assert engine.complete([requests[1]])[0].new_tokens == LIMITS[1]


def test_an_error_of_whoever_makes_the_requests_reaches_him(served: EngineOf) -> None:
    engine = served("idefics2")
    requests = asked(engine)

    def broken() -> Iterator[Prepared]:
        yield from requests[:4]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(serve(engine, broken(), slots=2))
    assert engine.complete([requests[1]])[0].new_tokens == LIMITS[1]


def test_an_error_of_ours_ends_the_run(endless: EngineOf, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = endless("idefics2")

    def broken(*args: object) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr("idefics_cli.engine.local.scheduling.together", broken)
    with pytest.raises(ZeroDivisionError, match="deep inside"):
        list(serve(engine, asked(engine), slots=2))


def test_no_requests_have_no_outcomes(served: EngineOf) -> None:
    assert serve_all(served("idefics2"), []) == {}
