"""Sampling: seeds, penalties, top-k and top-p, and settings at the edge of their range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.decode import sampling as sampling_module
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.drawing import draw_token, draw_tokens
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.transfer import HostCopy
from tests.support.prompts import ask
from tests.support.recording import waits_for_host
from tests.support.serving import serve_all, tokens_of

GREEDY = Sampling(max_new_tokens=20)


@pytest.fixture(scope="module")
def engine(endless: Callable[[str], LocalEngine]) -> LocalEngine:
    return endless("idefics2")


def test_the_same_seed_gives_the_same_reply_and_another_seed_another(engine: LocalEngine) -> None:
    def reply(seed: int | None) -> tuple[int, ...]:
        sampling = replace(GREEDY, temperature=1.5, seed=seed)
        return engine.complete([ask(sampling=sampling)])[0].token_ids

    assert reply(1) == reply(1)
    assert reply(1) != reply(2)
    assert reply(None) != reply(None)


def test_each_row_of_a_batch_is_sampled_its_own_way(engine: LocalEngine) -> None:
    ways = [
        GREEDY,
        replace(GREEDY, temperature=1.2, seed=5),
        replace(GREEDY, temperature=0.7, top_k=5, seed=6),
        replace(GREEDY, temperature=2.0, top_p=0.5, seed=7),
        replace(GREEDY, repetition_penalty=1.8),
        Sampling(max_new_tokens=3),
    ]
    batch = [ask(sampling=way) for way in ways]
    alone = [engine.complete([prepared])[0] for prepared in batch]
    together = engine.complete(batch)
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert len({a.token_ids for a in alone}) == len(ways)


WAYS = [
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.7, top_k=5, seed=2),
    Sampling(temperature=2.0, top_p=0.5, seed=3),
    Sampling(temperature=1.3, top_k=40, top_p=0.9, seed=4),
    Sampling(temperature=1e-46, seed=5),
    Sampling(temperature=1e308, top_k=10**9, seed=6),
    Sampling(temperature=1.0, top_p=1e-300, seed=7),
    Sampling(temperature=0.1, top_k=1, top_p=0.99, seed=8),
]
"""Settings of rows that are drawn together."""


@pytest.mark.parametrize("has_ties", [False, True], ids=["distinct scores", "equal scores"])
def test_rows_that_are_drawn_together_get_the_tokens_of_rows_alone(has_ties: bool) -> None:
    # Of equal scores at its edge, top-p takes any.
    ways = [way for way in WAYS if not has_ties or way.top_p == 1.0]
    together = [BatchRow(way, prompt=[], limit=99) for way in ways]
    alone = [BatchRow(way, prompt=[], limit=99) for way in ways]
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(len(ways), 3000, generator=generator) * 3
        scores = scores.round() if has_ties else scores
        scores[:, :9] = -torch.inf
        with waits_for_host() as waits:
            ids = draw_tokens(scores, together)
        assert waits == []
        wanted = [
            draw_token(row_scores, row) for row_scores, row in zip(scores, alone, strict=True)
        ]
        assert ids.tolist() == wanted
        for row in (*together, *alone):
            row.draw = None


def test_a_drawn_token_that_is_not_appended_is_drawn_again() -> None:
    row = BatchRow(Sampling(temperature=1.0, seed=1), prompt=[], limit=9)
    scores = torch.zeros(1, 1000)
    assert draw_tokens(scores, [row]).tolist() == draw_tokens(scores, [row]).tolist()


def test_a_gpu_is_waited_for_once_for_all_rows_and_gives_the_same_tokens(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [ask(sampling=replace(way, max_new_tokens=20)) for way in [GREEDY, *WAYS]]
    expected = [answer.token_ids for answer in engine.complete(batch)]
    monkeypatch.setattr(sampling_module, "draws_together", lambda scores: True)
    reads: list[int] = []
    tolist = HostCopy.tolist

    def counted(copy: HostCopy) -> list[list[float]]:
        numbers = tolist(copy)
        reads.append(len(numbers[0]))
        return numbers

    monkeypatch.setattr(HostCopy, "tolist", counted)
    assert [answer.token_ids for answer in engine.complete(batch)] == expected
    # For each token: the highest scores of all rows, then the tokens of the rows that draw.
    assert reads == [len(batch), len(WAYS)] * 20


def test_an_error_before_the_drawn_tokens_are_read_changes_none(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [ask(sampling=replace(way, max_new_tokens=20)) for way in WAYS]
    expected = [answer.token_ids for answer in engine.complete(batch)]
    monkeypatch.setattr(sampling_module, "draws_together", lambda scores: True)
    tolist, calls = HostCopy.tolist, 0

    def fail_at_times(copy: HostCopy) -> list[list[float]]:
        nonlocal calls
        calls += 1
        if calls in (8, 17):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tolist(copy)

    monkeypatch.setattr(HostCopy, "tolist", fail_at_times)
    assert tokens_of(serve_all(engine, batch, slots=len(batch))) == expected
    assert calls > 40


def draws(scores: Tensor, sampling: Sampling, count: int) -> Iterator[int]:
    """Draw *count* tokens from the same scores."""
    row = BatchRow(sampling, prompt=[], limit=9)
    for _ in range(count):
        yield draw_token(scores, row)
        row.draw = None


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    drawn = torch.zeros(6)
    for token in draws(probabilities.log(), Sampling(temperature=1.0, seed=0), 20_000):
        drawn[token] += 1
    # Four standard deviations of a share of one half.
    assert (drawn / 20_000 - probabilities).abs().max() < 4 * (0.25 / 20_000) ** 0.5
    assert not drawn[probabilities == 0].any()


@pytest.mark.parametrize("draw", [0.0, 1 - 2.0**-53])
def test_the_extreme_draws_choose_tokens_that_are_possible(draw: float) -> None:
    scores = torch.full((49_280,), -torch.inf)
    scores[1_000:40_000] = torch.randn(39_000, generator=torch.Generator().manual_seed(0))
    row = BatchRow(Sampling(temperature=1.0, seed=0), prompt=[], limit=9)
    row.draw = torch.tensor(draw, dtype=torch.float64)
    assert draw_token(scores, row) == (1_000 if draw == 0.0 else 39_999)


def test_repetition_penalty_equals_the_librarys(engine: LocalEngine) -> None:
    loaded = engine.loaded
    prepared = ask(sampling=replace(GREEDY, repetition_penalty=1.3))
    inputs = loaded.family.encode([prepared.request], [()])
    generate = getattr(loaded.model, "generate")  # noqa: B009  # the protocol has no `generate`
    out = generate(
        **inputs,
        max_new_tokens=20,
        do_sample=False,
        repetition_penalty=1.3,
        eos_token_id=None,
        bad_words_ids=[[i] for i in loaded.family.banned_ids],
        pad_token_id=0,
    )
    (answer,) = engine.complete([prepared])
    assert list(answer.token_ids) == out[0, inputs["input_ids"].shape[1] :].tolist()


def test_top_k_and_top_p_leave_only_the_likeliest_tokens() -> None:
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])

    def drawn(*, top_k: int = 0, top_p: float = 1.0) -> set[int]:
        sampling = Sampling(temperature=1.0, seed=0, top_k=top_k, top_p=top_p)
        return set(draws(scores, sampling, 400))

    # Probabilities: 0.636, 0.234, 0.086, 0.032, 0.012.
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.6) == {0}
    assert drawn(top_p=0.7) == {0, 1}
    assert drawn(top_p=0.9) == {0, 1, 2}
    assert drawn() == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "sampling",
    [
        replace(GREEDY, temperature=1e-46),
        replace(GREEDY, temperature=1e-5),
        replace(GREEDY, temperature=1e308),
        replace(GREEDY, temperature=1.0, top_p=1e-9),
        replace(GREEDY, temperature=1.0, top_p=1e-300),  # zero in float32
        replace(GREEDY, temperature=1.0, top_k=10**9),
        replace(GREEDY, repetition_penalty=1e-300),
        replace(GREEDY, repetition_penalty=1e308),
        replace(GREEDY, repetition_penalty=1e308, temperature=1e-46),
    ],
    ids=str,
)
def test_settings_at_the_edge_of_their_range_give_an_answer(
    sampling: Sampling, engine: LocalEngine
) -> None:
    (answer,) = engine.complete([ask(sampling=replace(sampling, seed=1))])
    assert answer.new_tokens == 20
    if 0 < sampling.temperature <= 1e-5 and sampling.repetition_penalty == 1.0:
        assert answer.token_ids == engine.complete([ask(sampling=GREEDY)])[0].token_ids
