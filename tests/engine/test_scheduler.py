"""One loop answers requests of all threads: each gets the reply that it gets alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache

from idefics_cli.core.errors import ContextError, MemoryLimitError
from idefics_cli.core.types import Completion, GenerationRequest, Message, Sampling, TokenChunk
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.sampling import Scores
from idefics_cli.engine.local.decode.slots import Slots
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.protocol import Engine, Outcome, Prepared, Urgency
from idefics_cli.models.families.base import Inputs
from idefics_cli.models.families.protocols import Model, StepOutput
from idefics_cli.models.kernels.text_step.step import TextStep
from idefics_cli.models.loading.loader import Loaded
from tests.support.asked import Asked
from tests.support.fakes import FakeEngine
from tests.support.prompts import CONVERSATIONS, as_request, ask, endless_inference, reopen
from tests.support.recording import gpu_inference

EngineOf = Callable[[str], LocalEngine]
AloneOf = Callable[[str, Sequence[Sampling], int], list[tuple[int, ...]]]
GREEDY = Sampling()
DRAWN = Sampling(temperature=1.0, seed=3)
MIXED = (GREEDY, DRAWN)
FAMILIES = ("idefics", "idefics2", "idefics3", "smolvlm2")
WAYS: dict[str, Callable[[Loaded], Inference]] = {
    "slots": endless_inference,
    "recorded slots": gpu_inference,
    "padded": partial(Inference, stop_ids=(), uses_slots=False),
}


def requests_of(
    engine: LocalEngine, samplings: Sequence[Sampling], count: int = 16
) -> list[Prepared]:
    """Return requests with none to three pictures, and replies of many lengths.

    *samplings* take turns.
    """
    turns = list(CONVERSATIONS.values())
    return [
        as_request(
            engine,
            turns[number % len(turns)],
            sampling=replace(
                samplings[number % len(samplings)], max_new_tokens=3 + number * 5 % 17
            ),
        )
        for number in range(count)
    ]


def alone(engine: LocalEngine, requests: Sequence[Prepared]) -> list[tuple[int, ...]]:
    """Return the tokens of each reply without any other request, and without a prefix."""
    replies = []
    for prepared in requests:
        engine.inference.drop_caches()
        replies.append(engine.complete([prepared])[0].token_ids)
    engine.inference.drop_caches()
    return replies


@pytest.fixture(scope="module")
def alone_of(endless: EngineOf) -> AloneOf:
    """Return the tokens of the requests of a kind, each alone, which are computed once."""

    @cache
    def get(kind: str, samplings: Sequence[Sampling], count: int) -> list[tuple[int, ...]]:
        return alone(endless(kind), requests_of(endless(kind), samplings, count))

    return get


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(endless: EngineOf, way: str) -> Iterator[EngineOf]:
    """Engines that decode in this *way*."""
    engines: list[LocalEngine] = []

    def get(kind: str) -> LocalEngine:
        engines.append(reopen(endless(kind), WAYS[way]))
        return engines[-1]

    yield get
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("kind", FAMILIES)
def test_sixteen_threads_get_the_replies_that_each_gets_alone(
    kind: str, opened: EngineOf, alone_of: AloneOf
) -> None:
    engine = opened(kind)
    requests = requests_of(engine, MIXED)
    expected = alone_of(kind, MIXED, len(requests))
    got: dict[int, Completion] = {}

    def work(index: int) -> None:
        urgency: Urgency = "batch" if index % 3 == 0 else "interactive"
        got[index] = Asked(engine, requests[index], urgency=urgency).completion()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i].token_ids for i in range(len(requests))] == expected


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_replies_that_give_way_go_on_with_their_next_tokens(
    kind: str,
    sampling: Sampling,
    opened: EngineOf,
    alone_of: AloneOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = opened(kind)
    requests = requests_of(engine, [sampling], 5)
    expected = alone_of(kind, (sampling,), 5)
    choose_tokens = Scores.choose_tokens
    given: list[int] = []
    calls = 0

    def fail_at_times(self: Scores, rows: Sequence[BatchRow]) -> None:
        nonlocal calls
        calls += 1
        if calls in (4, 9):
            raise torch.OutOfMemoryError("CUDA out of memory")
        before = sum(len(row.tokens) for row in rows)
        choose_tokens(self, rows)
        given.append(sum(len(row.tokens) for row in rows) - before)

    monkeypatch.setattr(Scores, "choose_tokens", fail_at_times)
    asked = [Asked(engine, prepared) for prepared in requests]
    assert [each.completion().token_ids for each in asked] == expected
    assert calls > 9
    # No token was generated twice.
    assert sum(given) == sum(len(tokens) for tokens in expected)


def test_an_error_of_one_reply_costs_the_others_no_token(
    opened: EngineOf, alone_of: AloneOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened("idefics2")
    requests = requests_of(engine, [DRAWN], 4)
    expected = alone_of("idefics2", (DRAWN,), 4)
    choose_tokens = Scores.choose_tokens
    broken = ask("Break!", Sampling(max_new_tokens=20, temperature=1.0, seed=1))

    def break_one(self: Scores, rows: Sequence[BatchRow]) -> None:
        if any(row.sampling.seed == 1 and len(row.tokens) == 3 for row in rows):
            raise ZeroDivisionError
        choose_tokens(self, rows)

    monkeypatch.setattr(Scores, "choose_tokens", break_one)
    asked = [Asked(engine, each) for each in (requests[0], broken, *requests[1:])]
    assert isinstance(asked.pop(1).outcome(), ZeroDivisionError)
    assert [each.completion().token_ids for each in asked] == expected


class Forwards:
    """Records the forwards of a model: rows and tokens of each, and what `note` returns there."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        engine: LocalEngine,
        note: Callable[[], int] = lambda: 0,
    ) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.notes: list[int] = []
        family = engine.loaded.family
        forward = family.forward

        def watched(
            model: Model, inputs: Inputs, cache: Cache, *, mask: Tensor | None, positions: Tensor
        ) -> StepOutput:
            rows, length = positions.shape
            self.shapes.append((rows, length))
            self.notes.append(note())
            return forward(model, inputs, cache, mask=mask, positions=positions)

        monkeypatch.setattr(family, "forward", watched)
        # Compiled steps do not call the forward of the family.
        monkeypatch.setattr(TextStep, "MOST_ROWS", 0)


def test_the_first_text_is_told_before_the_states_move_into_slots(
    endless: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, order = endless("idefics2"), list[str]()
    admit_rows = Slots.admit_rows

    def noted(slots: Slots, *arguments: Any, **named: Any) -> None:
        order.append("slots")
        admit_rows(slots, *arguments, **named)

    monkeypatch.setattr(Slots, "admit_rows", noted)
    done, prepared = Event(), ask(sampling=GREEDY)

    def listen(event: TokenChunk | Outcome) -> None:
        order.append(event.text if isinstance(event, TokenChunk) else "end")
        if not isinstance(event, TokenChunk):
            done.set()

    (whole,) = engine.complete([prepared])
    order.clear()
    engine.submit(prepared, listen, streams=True)
    assert done.wait(60)
    first, slots, *texts, last = order
    assert (slots, last) == ("slots", "end")
    assert first
    assert "".join([first, *texts]) == whole.text


def test_an_interactive_request_is_answered_while_batch_work_goes_on(
    endless: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = Tuning(chunk_tokens=16)
    with reopen(endless("idefics2"), partial(Inference, stop_ids=(), tuning=tuning)) as engine:
        turns = CONVERSATIONS["one image"]
        work = as_request(engine, turns, sampling=Sampling(max_new_tokens=40))
        question = as_request(engine, [("user", [], "word " * 40)])
        forwards = Forwards(monkeypatch, engine)
        with engine.serve(slots=8) as session:
            session.put_requests([work] * 8)
            while len(forwards.shapes) < 10:
                assert session.get_outcome(0) is None
            before = len(forwards.shapes)
            asked = Asked(engine, question)
            asked.wait_for_text()
            during = forwards.shapes[before:]
            # All slots of the session are taken, and yet the prompt ran, in pieces between steps.
            pieces = [index for index, (_, length) in enumerate(during) if length > 1]
            assert len(pieces) >= 3
            steps = [b - a - 1 for a, b in pairwise(pieces)]
            assert set(steps) == {1}
            assert asked.completion().new_tokens == 12
            outcomes = [session.get_outcome() for _ in range(8)]
        assert len([o for o in outcomes if o and isinstance(o[1], Completion)]) == 8
        # The question was decoded together with the others.
        assert (9, 1) in during + forwards.shapes[before + len(during) :]


def test_a_batch_request_is_not_put_off_for_ever(endless: EngineOf) -> None:
    order: list[str] = []
    tuning = Tuning(interactive_slots=1)
    with reopen(endless("idefics2"), partial(Inference, stop_ids=(), tuning=tuning)) as engine:
        short = Sampling(max_new_tokens=3)
        done = Event()

        def listen(name: str, event: TokenChunk | Outcome) -> None:
            order.append(name)
            if len(order) == 21:
                done.set()

        for number in range(20):
            engine.submit(ask("Hi", short), partial(listen, f"question {number}"))
        engine.submit(ask("Hi", short), partial(listen, "batch"), urgency="batch")
        assert done.wait(60)
    assert order.index("batch") < 20


def test_kv_states_stay_within_their_budget_and_every_request_is_answered(
    endless: EngineOf, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = endless("idefics2")
    needed = plain.inference.kv_budget.bytes_per_token
    budget = 3000 * needed
    tuning = Tuning(kv_bytes=budget, block_tokens=16, chunk_tokens=32)
    make = WAYS[way]
    keywords = {"tuning": tuning}
    with reopen(plain, partial(make, **keywords)) as engine:
        longs = [ask("word " * 40, Sampling(max_new_tokens=150)) for _ in range(3)]
        mixed = [*requests_of(engine, [GREEDY], 12), *longs]
        random.Random(1).shuffle(mixed)
        expected = alone(plain, mixed)
        forwards = Forwards(monkeypatch, engine, lambda: engine.held_kv_bytes)
        asked = [Asked(engine, each, streams=False) for each in mixed]
        assert [each.completion().token_ids for each in asked] == expected
        assert 0 < max(forwards.notes) <= budget
        # The budget was used: several requests ran together.
        assert max(rows for rows, _ in forwards.shapes) > 1 or way == "padded"


def test_slots_that_a_full_memory_took_come_back_for_later_requests(
    endless: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_tokens = Scores.choose_tokens
    counts: list[int] = []

    def fail_once(self: Scores, rows: Sequence[BatchRow]) -> None:
        if len(rows) == 4 and 4 not in counts:
            counts.append(4)
            raise torch.OutOfMemoryError("CUDA out of memory")
        counts.append(len(rows))
        choose_tokens(self, rows)

    monkeypatch.setattr(Scores, "choose_tokens", fail_once)
    tuning = Tuning(interactive_slots=4)
    with reopen(endless("idefics2"), partial(endless_inference, tuning=tuning)) as engine:
        for _ in range(2):
            counts.clear()
            prompts = [ask(f"Number {n}", Sampling(max_new_tokens=40)) for n in range(8)]
            asked = [Asked(engine, each, urgency="batch") for each in prompts]
            assert {each.completion().new_tokens for each in asked} == {40}
            assert max(counts) == 4
            # After the error, the rest of the first round takes half the slots.
            assert 4 not in counts[counts.index(4) + 1 :]


def test_a_request_that_exceeds_the_budget_alone_is_refused(endless: EngineOf) -> None:
    plain = endless("idefics2")
    tuning = Tuning(kv_bytes=400 * plain.inference.kv_budget.bytes_per_token, block_tokens=16)
    with reopen(plain, partial(Inference, stop_ids=(), tuning=tuning)) as engine:
        outcome = Asked(engine, ask("word " * 40, Sampling(max_new_tokens=200))).outcome()
        assert isinstance(outcome, MemoryLimitError)
        assert "of KV cache" in str(outcome)
        assert outcome.hint is not None
        assert "--max-new-tokens" in outcome.hint
        # Others are answered.
        assert Asked(engine, ask("Hi", Sampling(max_new_tokens=3))).completion().new_tokens == 3


def test_cancelling_ends_one_request_and_no_other(endless: EngineOf) -> None:
    tuning = Tuning(interactive_slots=2)
    with reopen(endless("idefics2"), partial(Inference, stop_ids=(), tuning=tuning)) as engine:
        long = Sampling(max_new_tokens=300)
        running, other = Asked(engine, ask("a", long)), Asked(engine, ask("b", long))
        running.wait_for_text()
        other.wait_for_text()
        waiting = Asked(engine, ask("c", long))
        behind = Asked(engine, ask("d", Sampling(max_new_tokens=5)))
        assert (waiting.handle.place, behind.handle.place) == (0, 1)
        waiting.handle.cancel()
        waiting.handle.cancel()
        cancelled = waiting.completion()
        assert (cancelled.finish, cancelled.new_tokens) == ("cancelled", 0)
        assert cancelled.prompt_tokens > 0
        running.handle.cancel()
        stopped = running.completion()
        assert stopped.finish == "cancelled"
        assert 0 < stopped.new_tokens < 300
        assert behind.completion().new_tokens == 5
        assert other.completion().new_tokens == 300
        assert running.handle.place is None


def test_a_listener_that_fails_cancels_its_own_request(
    endless: EngineOf, caplog: pytest.LogCaptureFixture
) -> None:
    engine = endless("idefics2")
    events: list[object] = []
    done = Event()

    def listen(event: TokenChunk | Outcome) -> None:
        events.append(event)
        if isinstance(event, TokenChunk):
            raise ZeroDivisionError
        done.set()

    engine.submit(ask("a", Sampling(max_new_tokens=200)), listen, streams=True)
    other = Asked(engine, ask("b", Sampling(max_new_tokens=30)))
    assert other.completion().new_tokens == 30
    assert done.wait(60)
    assert isinstance(events[-1], Completion)
    assert events[-1].finish == "cancelled"
    assert len(events) == 2
    assert "a listener failed" in caplog.text


def test_measuring_and_preparing_do_not_wait_for_what_runs(endless: EngineOf) -> None:
    engine = endless("idefics2")
    has_begun, may_go_on = Event(), Event()

    def listen(event: TokenChunk | Outcome) -> None:
        has_begun.set()
        may_go_on.wait(60)

    prepared = ask("How long is this?")
    engine.submit(ask("a", Sampling(max_new_tokens=3)), listen, streams=True)
    assert has_begun.wait(60)
    try:
        # The inference thread stands still in the listener.
        assert engine.measure(prepared).prompt_tokens > 5
        assert engine.prepare(prepared.request).request == prepared.request
        with pytest.raises(ContextError):
            engine.submit(ask("word " * 600), lambda event: None)
    finally:
        may_go_on.set()


def test_a_conversation_finds_its_states_after_others(endless: EngineOf) -> None:
    engine = endless("smolvlm2")
    engine.inference.drop_caches()
    short = Sampling(max_new_tokens=8)
    first = [ask(f"Tell me about {name}.", short) for name in ("Rome", "Oslo", "Lima")]
    answers = [engine.complete([each])[0] for each in first]
    for prepared, answer in zip(first, answers, strict=True):
        (message,) = prepared.request.messages
        messages = (message, Message("assistant", (answer.text,)), Message("user", ("And now?",)))
        second = Prepared(GenerationRequest(messages, Sampling(max_new_tokens=4)))
        (reply,) = engine.complete([second])
        assert reply.reused_tokens >= answer.prompt_tokens - 1
        kept = engine.complete([second])[0]
        assert kept.token_ids == reply.token_ids


def interleave(engine: LocalEngine, fresh: LocalEngine, conversations: int, replies: int) -> int:
    """Hold conversations in turns; return how many replies differ from those of a cold engine."""
    rng = random.Random(5)
    histories: list[list[Message]] = [[] for _ in range(conversations)]
    different = 0
    for _ in range(replies):
        history = histories[rng.randrange(conversations)]
        if len(history) > 6:
            history.clear()
        history.append(Message("user", (rng.choice(["Why?", "Go on.", "What is it?"]),)))
        request = GenerationRequest(tuple(history), Sampling(max_new_tokens=4))
        (reply,) = engine.complete([Prepared(request)])
        fresh.inference.drop_caches()
        different += reply.token_ids != fresh.complete([Prepared(request)])[0].token_ids
        history.append(Message("assistant", (reply.text,)))
    return different


@pytest.mark.parametrize(
    ("conversations", "replies"), [(20, 60), pytest.param(200, 2000, marks=pytest.mark.slow)]
)
def test_interleaved_conversations_never_get_the_states_of_another(
    conversations: int, replies: int, endless: EngineOf
) -> None:
    plain = endless("smolvlm2")
    # There is room for some of the conversations only.
    tuning = Tuning(kv_bytes=20_000 * plain.inference.kv_budget.bytes_per_token)
    before = threading.active_count()
    with reopen(plain, partial(Inference, stop_ids=(), tuning=tuning)) as engine:
        assert interleave(engine, plain, conversations, replies) == 0
        assert engine.held_kv_bytes == engine.inference.prefix.held_bytes
        assert engine.inference.prefix.held_bytes <= engine.inference.kv_budget.prefix_bytes
    assert threading.active_count() == before


def test_both_engines_keep_the_same_contract(endless: EngineOf) -> None:
    fake = FakeEngine("one two three", "one two three", "one two three")
    engines: list[Engine] = [endless("idefics2"), fake]
    for engine in engines:
        prepared = engine.prepare(ask("Say it", Sampling(max_new_tokens=30)).request)
        asked = Asked(engine, prepared)
        submitted = asked.completion()
        assert asked.chunks
        assert all(chunk.finish is None for chunk in asked.chunks)
        (whole,) = engine.complete([prepared])
        *_, last = chunks = list(engine.stream(prepared))
        assert submitted.text == whole.text == "".join(chunk.text for chunk in chunks)
        assert submitted.new_tokens == whole.new_tokens == last.new_tokens
        assert submitted.finish == whole.finish == last.finish
        measure = engine.measure(prepared)
        assert measure is not None
        assert submitted.prompt_tokens == measure.prompt_tokens
        quiet = Asked(engine, prepared, streams=False) if engine is not fake else None
        assert quiet is None or (quiet.completion().text, quiet.chunks) == (whole.text, [])


def test_slots_that_no_request_uses_take_no_memory(endless: EngineOf) -> None:
    with reopen(endless("idefics2"), endless_inference) as engine:
        seen: list[int] = []

        def listen(event: TokenChunk | Outcome) -> None:
            seen.append(engine.held_kv_bytes)

        engine.submit(ask("Hi", Sampling(max_new_tokens=5)), listen, streams=True)
        with engine.serve(slots=100_000) as session:
            session.put_requests([ask("Hi", Sampling(max_new_tokens=30))] * 3)
            while (found := session.get_outcome()) is not None:
                assert isinstance(found[1], Completion)
                seen.append(engine.held_kv_bytes)
        states = max(seen) / engine.inference.kv_budget.bytes_per_token
        assert 0 < states < 5000
