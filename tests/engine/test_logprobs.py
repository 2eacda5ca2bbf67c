"""Probabilities of tokens, the penalties of OpenAI's API, replies of a fixed length, salts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from idefics_cli.core.logprobs import TokenLogprob
from idefics_cli.core.types import Completion, Sampling
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.logprobs import token_text
from idefics_cli.engine.local.decode.penalties import penalize
from idefics_cli.engine.local.decode.sampling import Scores
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Prepared
from tests.support.prompts import ask, open_engine
from tests.support.tiny import CHATTING

TOLD = Sampling(max_new_tokens=8, top_logprobs=3)
WAYS = [
    TOLD,
    replace(TOLD, temperature=1.5, seed=3, top_k=40),
    replace(TOLD, repetition_penalty=1.7, presence_penalty=1.0),
    replace(TOLD, top_logprobs=0),
    replace(TOLD, top_logprobs=None),
]


@pytest.fixture(scope="module")
def engine(endless: Callable[[str], LocalEngine]) -> LocalEngine:
    return endless("idefics2")


def known_logs(engine: LocalEngine, prepared: Prepared, tokens: Sequence[int]) -> torch.Tensor:
    """Return the logarithms (T, V) for all *tokens* from one forward of the library."""
    loaded = engine.loaded
    inputs = loaded.family.encode([prepared.request], [()])
    prompt = inputs["input_ids"]
    whole = torch.cat([prompt, torch.tensor([list(tokens)])], dim=1)
    call = getattr(loaded.model, "forward")  # noqa: B009  # the protocol has no `forward`
    with torch.inference_mode():
        output = call(input_ids=whole, attention_mask=torch.ones_like(whole))
        logits: torch.Tensor = output.logits[0].float()
        logits[:, sorted(loaded.family.banned_ids)] = -torch.inf
        return logits[prompt.shape[1] - 1 : -1].log_softmax(-1)


def flat(told: Sequence[TokenLogprob]) -> list[tuple[str, float, list[tuple[str, float]]]]:
    """Return what can be compared; logarithms are rounded as batches round them."""
    return [
        (one.text, round(one.logprob, 3), [(o.text, round(o.logprob, 3)) for o in one.top])
        for one in told
    ]


@pytest.mark.parametrize("sampling", WAYS[:4], ids=["greedy", "drawn", "penalties", "no others"])
def test_logarithms_are_those_of_the_library_whatever_the_sampling(
    sampling: Sampling, engine: LocalEngine
) -> None:
    prepared = ask(sampling=sampling)
    (answer,) = engine.complete([prepared])
    logs = known_logs(engine, prepared, answer.token_ids)
    assert len(answer.logprobs) == len(answer.token_ids) == 8
    for token, told, row in zip(answer.token_ids, answer.logprobs, logs, strict=True):
        assert told.logprob == pytest.approx(float(row[token]), abs=1e-4)
        values, ids = row.topk(sampling.top_logprobs or 0)
        assert [one.logprob for one in told.top] == pytest.approx(values.tolist(), abs=1e-4)
        assert [one.text for one in told.top] == [
            token_text(engine.loaded.family, int(each))[0] for each in ids
        ]
    if sampling == TOLD:
        assert all(one.top[0].text == one.text for one in answer.logprobs)


def test_rows_of_a_batch_and_streams_tell_the_same(engine: LocalEngine) -> None:
    batch = [ask(sampling=way) for way in WAYS]
    alone = [engine.complete([prepared])[0] for prepared in batch]
    together = engine.complete(batch)
    assert [flat(one.logprobs) for one in together] == [flat(one.logprobs) for one in alone]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert not alone[-1].logprobs
    for prepared, whole in zip(batch, alone, strict=True):
        told = [one for chunk in pieces(engine, prepared) for one in chunk]
        assert flat(told) == flat(whole.logprobs)[: len(told)]
        assert len(told) >= len(whole.logprobs) - 2


def pieces(engine: LocalEngine, prepared: Prepared) -> list[tuple[TokenLogprob, ...]]:
    return [chunk.logprobs for chunk in engine.stream(prepared)]


@pytest.mark.parametrize("kind", CHATTING)
def test_the_bytes_of_single_tokens_join_to_the_text(
    kind: str, checkpoint: Callable[[str], Path]
) -> None:
    with open_engine(checkpoint(kind), kind) as engine:
        family = engine.loaded.family
        text = "A red circle, Zürich 漢字 🙂 and\ntwo  spaces"
        ids = family.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = [token_text(family, each) for each in ids]
    assert b"".join(data for _, data in found).decode().lstrip() == text
    assert all(text.encode() == data for text, data in found if "\ufffd" not in text)


def test_a_banned_token_has_the_least_logarithm_and_the_row_keeps_its_order() -> None:
    rows = [BatchRow(Sampling(top_logprobs=5, max_new_tokens=2), [1], 2)]
    Scores(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([2])).choose_tokens(rows)
    (told,) = rows[0].logprobs
    assert rows[0].tokens == [1]
    assert [token for token, _ in told.top] == [1, 0, 2]
    assert told.top[-1][1] == -9999.0
    assert told.logprob == pytest.approx(-0.31326, abs=1e-4)


# Penalties


@pytest.mark.parametrize(
    ("presence", "frequency", "expected"),
    [
        (0.5, 0.0, [4.0, 2.5, 1.5, 1.0]),
        (0.0, 0.5, [4.0, 2.0, 1.5, 1.0]),
        (1.0, -2.0, [4.0, 6.0, 3.0, 1.0]),
    ],
)
def test_penalties_count_the_tokens_of_the_reply_only(
    presence: float, frequency: float, expected: list[float]
) -> None:
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    row = BatchRow(sampling, prompt=[0, 0], limit=9, tokens=[1, 2, 1])
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    penalize(scores, row)
    assert scores.tolist() == expected
    assert not row.is_argmax


def test_a_greedy_reply_with_penalties_is_that_of_a_loop_over_the_library(
    engine: LocalEngine,
) -> None:
    sampling = Sampling(max_new_tokens=12, presence_penalty=0.7, frequency_penalty=1.3)
    prepared = ask(sampling=sampling)
    (answer,) = engine.complete([prepared])
    tokens: list[int] = []
    for _ in range(12):
        scores = known_logs(engine, prepared, [*tokens, 0])[-1].clone()
        for token, count in Counter(tokens).items():
            scores[token] -= 0.7 + count * 1.3
        tokens.append(int(scores.argmax()))
    assert list(answer.token_ids) == tokens
    plain = engine.complete([ask(sampling=Sampling(max_new_tokens=12))])[0]
    assert plain.token_ids != answer.token_ids


# Other fields


def test_a_reply_that_ignores_its_end_has_its_whole_length(
    checkpoint: Callable[[str], Path],
) -> None:
    with open_engine(checkpoint("idefics2"), "idefics2") as engine:
        ends = replace(ask(sampling=Sampling(max_new_tokens=5, temperature=9.0, seed=1)))
        row = engine.inference.new_row(
            replace(ends, request=replace(ends.request, sampling=Sampling(ignores_end=True))),
            engine.inference.encode(ends),
        )
        usual = engine.inference.new_row(ends, engine.inference.encode(ends))
    end = next(iter(usual.stop_ids))
    for each in (row, usual):
        each.append(end)
    assert (row.finish, usual.finish) == (None, "stop")


def test_another_salt_uses_no_states_of_the_same_conversation(
    checkpoint: Callable[[str], Path],
) -> None:
    def answer(served: LocalEngine, salt: str) -> Completion:
        prepared = ask("Tell me a long story about circles.", sampling=Sampling(max_new_tokens=4))
        salted = replace(prepared.request, cache_salt=salt)
        return served.complete([replace(prepared, request=salted)])[0]

    with open_engine(checkpoint("idefics2"), "idefics2") as served:
        found = [answer(served, salt) for salt in ("", "", "a", "a", "b", "", "a")]
    reused = [one.reused_tokens > 0 for one in found]
    assert reused == [False, True, False, True, False, True, True]
    assert len({one.token_ids for one in found}) == 1
