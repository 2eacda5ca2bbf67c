"""`--choice` with the built-in model: closed questions, probabilities, batches and order."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from idefics_cli.core.types import (
    Attachment,
    Completion,
    Constraint,
    GenerationRequest,
    LoadSpec,
    Message,
    Sampling,
)
from idefics_cli.demo.drawing import draw
from idefics_cli.demo.questions import Question, ask
from idefics_cli.demo.scenes import scene_for_split
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.schema.choices import choice_constraint
from tests.support.kernels import with_kernels

TASKS = ("background", "count", "exists", "color", "size", "color_at", "position")
EACH = 6
SPEC = with_kernels(LoadSpec(repo="demo", family="idefics2", name="demo"))


@dataclass(frozen=True)
class Asked:
    """A question about a picture, and the plain words of all answers of its kind."""

    path: str
    question: Question
    choices: tuple[str, ...]

    @property
    def answer(self) -> str:
        return plain(self.question.answer)

    def request(self, choices: Sequence[str]) -> GenerationRequest:
        parts = (Attachment(self.path), self.question.question)
        constraint = choice_constraint(choices)
        return GenerationRequest((Message("user", parts),), constraint=constraint)


def plain(answer: str) -> str:
    return answer.removesuffix(".").lower()


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(SPEC) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    """Return questions about scenes that no training picture shows."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = random.Random(0)
    scenes = [scene_for_split("combo", seed) for seed in range(300)]
    found = []
    for task in TASKS:
        drawn = [(scene, ask(scene, rng, task)) for scene in scenes]
        fitting = [(scene, question) for scene, question in drawn if question]
        choices = tuple(sorted({plain(question.answer) for _, question in fitting}))
        assert len(choices) >= 2
        for scene, question in fitting[:EACH]:
            path = folder / f"{scene.seed}.png"
            if not path.exists():
                draw(scene).image.save(path)
            found.append(Asked(str(path), question, choices))
    return found


def answers(engine: LocalEngine, requests: Sequence[GenerationRequest]) -> list[Completion]:
    return engine.complete([engine.prepare(request) for request in requests])


def test_choices_of_closed_questions_are_right_and_probable(
    engine: LocalEngine, asked: list[Asked]
) -> None:
    found = answers(engine, [each.request(each.choices) for each in asked])
    assert len(found) == len(TASKS) * EACH
    right = [each.answer == reply.text for each, reply in zip(asked, found, strict=True)]
    assert sum(right) >= 0.98 * len(found)
    for each, reply in zip(asked, found, strict=True):
        assert (reply.finish, reply.new_tokens) == ("stop", 0)
        assert reply.choice is not None
        assert [name for name, _ in reply.choice.probabilities] == list(each.choices)
        assert math.isclose(sum(share for _, share in reply.choice.probabilities), 1.0)
        assert reply.choice.best[0] == reply.text
        assert 0.9 < reply.choice.mass <= 1.0


def scores(reply: Completion) -> dict[str, float]:
    assert reply.choice is not None
    return {**dict(reply.choice.probabilities), "mass": reply.choice.mass}


def test_neither_the_batch_nor_the_order_of_choices_matters(
    engine: LocalEngine, asked: list[Asked]
) -> None:
    some = asked[:: EACH // 2]
    together = answers(engine, [each.request(each.choices) for each in some])
    for each, reply in zip(some, together, strict=True):
        (alone,) = answers(engine, [each.request(tuple(reversed(each.choices)))])
        assert alone.text == reply.text
        assert scores(alone) == pytest.approx(scores(reply), abs=1e-4)


def test_a_choice_beside_other_replies_changes_none(
    engine: LocalEngine, asked: list[Asked]
) -> None:
    first = asked[0]
    free = GenerationRequest(first.request(first.choices).messages, Sampling(max_new_tokens=12))
    number = GenerationRequest(
        free.messages, free.sampling, constraint=Constraint("regex", r"\d{3}")
    )
    requests = [free, first.request(first.choices), number, first.request(("one", "two"))]
    together = answers(engine, requests)
    alone = [answers(engine, [request])[0] for request in requests]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    assert [each.text for each in together] == [each.text for each in alone]
    assert together[1].text == first.answer
    assert scores(together[1]) == pytest.approx(scores(alone[1]), abs=1e-4)
    assert scores(together[3])["mass"] < 0.01


def test_the_probability_of_an_answer_is_that_of_generating_it(
    engine: LocalEngine, asked: list[Asked]
) -> None:
    """The model samples each answer as often as its mass says."""
    (each,) = asked[:1]
    (reply,) = answers(engine, [each.request((each.answer, "nothing"))])
    drawn = answers(
        engine,
        [
            GenerationRequest(
                each.request(("a", "b")).messages,
                Sampling(temperature=1.0, seed=seed, max_new_tokens=8),
            )
            for seed in range(64)
        ],
    )
    share = sum(plain(one.text) == each.answer for one in drawn) / len(drawn)
    assert reply.choice is not None
    assert share == pytest.approx(reply.choice.mass, abs=0.15)
