"""Many threads, cancelled requests and errors at random: one outcome each, and the right tokens."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

import pytest
import torch

from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.core.types import Completion, Sampling, TokenChunk
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.sampling import Scores
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.protocol import Outcome, Prepared
from tests.support.prompts import CONVERSATIONS, as_request, reopen
from tests.support.recording import gpu_inference

EngineOf = Callable[[str], LocalEngine]
Expected = Sequence[tuple[int, ...]]
_TUNINGS = {
    "large": {"chunk_tokens": None, "block_tokens": 256, "interactive_slots": 16},
    "narrow": {"chunk_tokens": 8, "block_tokens": 16, "interactive_slots": 2},
}


def requests_of(engine: LocalEngine, rng: random.Random) -> list[Prepared]:
    """Return requests of all kinds: with and without pictures, greedy, drawn and penalized."""
    turns = list(CONVERSATIONS.values())
    return [
        as_request(
            engine,
            turns[number % len(turns)],
            sampling=Sampling(
                max_new_tokens=rng.randrange(1, 30),
                temperature=rng.choice([0.0, 1.0]),
                repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
                seed=number,
            ),
        )
        for number in range(10)
    ]


class Asker:
    """One thread that asks, cancels, streams and serves at random.

    Args:
        engine: Answers.
        requests: What to ask.
        expected: The tokens of each reply without any other request.
        seed: Seeds the choices.
        rounds: How often it asks.

    Attributes:
        outcomes: How often each kind of outcome came.
        faults: What was wrong.
    """

    def __init__(
        self,
        engine: LocalEngine,
        requests: Sequence[Prepared],
        expected: Expected,
        seed: int,
        rounds: int,
    ) -> None:
        self._engine, self._requests, self._expected = engine, requests, expected
        self._random, self._rounds = random.Random(seed), rounds
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self) -> None:
        """Ask some requests; note every fault."""
        for _ in range(self._rounds):
            way = self._random.choice([self._submit, self._submit, self._complete, self._serve])
            try:
                way(self._random.randrange(len(self._requests)))
            except (MemoryLimitError, ZeroDivisionError) as error:
                self.outcomes[type(error).__name__] += 1
            except Exception as error:
                self.faults.append(repr(error))

    def _submit(self, number: int) -> None:
        events: SimpleQueue[TokenChunk | Outcome] = SimpleQueue()
        handle = self._engine.submit(
            self._requests[number],
            events.put,
            urgency=self._random.choice(["interactive", "batch"]),
            streams=self._random.random() < 0.5,
        )
        is_cancelled = self._random.random() < 0.3
        if is_cancelled:
            handle.cancel()
        while isinstance(event := events.get(timeout=60), TokenChunk):
            pass
        self._judge(number, event, is_cancelled=is_cancelled)
        if not events.empty():
            self.faults.append("an event came after the outcome")

    def _complete(self, number: int) -> None:
        other = self._random.randrange(len(self._requests))
        answers = self._engine.complete([self._requests[number], self._requests[other]])
        for asked, answer in zip((number, other), answers, strict=True):
            self._judge(asked, answer)

    def _serve(self, number: int) -> None:
        numbers = [(number + step) % len(self._requests) for step in range(6)]
        with self._engine.serve(slots=self._random.choice([1, 3, 6])) as session:
            given = 0
            for _ in numbers:
                more = numbers[given : given + session.room]
                session.put_requests([self._requests[each] for each in more])
                given += len(more)
                found = session.get_outcome(60)
                if found is None:
                    self.faults.append("a session has no outcome")
                    return
                self._judge(numbers[found[0]], found[1])

    def _judge(self, number: int, outcome: Outcome, *, is_cancelled: bool = False) -> None:
        if not isinstance(outcome, Completion):
            is_forced = isinstance(outcome, MemoryLimitError | ZeroDivisionError)
            self.outcomes[type(outcome).__name__] += 1
            self.faults += [] if is_forced else [repr(outcome)]
            return
        self.outcomes[outcome.finish] += 1
        expected = self._expected[number]
        if is_cancelled and outcome.finish == "cancelled":
            expected = expected[: outcome.new_tokens]
        if outcome.token_ids != expected:
            self.faults.append(f"reply {number} has other tokens")


@pytest.mark.parametrize("rounds", [3, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kind", "way", "tuning"),
    [
        ("idefics", "slots", "narrow"),
        ("idefics2", "slots", "large"),
        ("idefics2", "slots", "narrow"),
        ("idefics2", "recorded slots", "narrow"),
        ("idefics2", "padded", "large"),
    ],
)
def test_every_request_has_one_outcome_and_its_own_tokens(
    kind: str,
    way: str,
    tuning: str,
    rounds: int,
    endless: EngineOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = endless(kind)
    rng = random.Random(f"{kind} {way} {tuning}")
    requests = requests_of(plain, rng)
    expected = []
    for prepared in requests:
        plain.inference.drop_caches()
        expected.append(plain.complete([prepared])[0].token_ids)
    kv_bytes = 3000 * plain.inference.kv_budget.bytes_per_token
    sizes = Tuning(kv_bytes=kv_bytes, **_TUNINGS[tuning])  # type: ignore[arg-type]  # of one table
    make = gpu_inference if way == "recorded slots" else partial(Inference, stop_ids=())
    if way == "padded":
        make = partial(Inference, stop_ids=(), uses_slots=False)
    choose_tokens = Scores.choose_tokens
    forced: Counter[str] = Counter()

    def fail_at_times(self: Scores, rows: Sequence[BatchRow]) -> None:
        draw = rng.random()
        if draw < 0.04:
            forced["memory"] += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        if draw < 0.06:
            forced["other"] += 1
            raise ZeroDivisionError
        choose_tokens(self, rows)

    with reopen(plain, partial(make, tuning=sizes)) as engine:
        askers = [Asker(engine, requests, expected, seed, rounds) for seed in range(5)]
        monkeypatch.setattr(Scores, "choose_tokens", fail_at_times)
        threads = [threading.Thread(target=asker.run, daemon=True) for asker in askers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
        monkeypatch.undo()
    assert [fault for asker in askers for fault in asker.faults] == []
    outcomes = sum((asker.outcomes for asker in askers), Counter[str]())
    assert outcomes["length"] > 6 * rounds
    assert outcomes["cancelled"] > 0
    assert forced["memory"] > 0
