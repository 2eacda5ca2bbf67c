"""Rows with a model's own answers to other questions."""

from __future__ import annotations

import random
from pathlib import Path

from idefics_cli.core.types import Completion
from idefics_cli.demo.replayed import own_question
from idefics_cli.demo.wordings import KNOWN_QUESTIONS
from idefics_cli.training.labels import IGNORED
from idefics_cli.training.tuning.replay import (
    choose_questions,
    from_json,
    replay_examples,
    request_of,
    to_json,
    whole_answers,
)
from tests.support.training import load_tiny, make_examples

QUESTIONS = ("How many cats?", "What color is it?", "Is it a dog?")


def ask(rng: random.Random, answer: str) -> tuple[str, int]:
    return rng.choice(QUESTIONS), 1


def test_questions_depend_on_the_seed_only_and_have_the_asked_number(tmp_path: Path) -> None:
    examples = make_examples(load_tiny(tmp_path, "idefics2").family, 40)
    once, again = (choose_questions(examples, ask, count=1.5, seed=3) for _ in range(2))
    assert once == again != choose_questions(examples, ask, count=1.5, seed=4)
    assert 45 <= len(once) <= 75
    assert {each.example for each in once} == set(range(40))
    assert len({(each.example, each.text) for each in once}) == len(once)
    assert choose_questions(examples, ask, count=0, seed=3) == []
    assert len(choose_questions(examples[:1], ask, count=9, seed=3)) == len(QUESTIONS)


def test_an_answer_becomes_a_row_about_the_same_picture(tmp_path: Path) -> None:
    family = load_tiny(tmp_path, "idefics3").family
    examples = make_examples(family, 3)
    chosen = choose_questions(examples, ask, count=1, seed=0)
    made = list(replay_examples(chosen, ["One.", None, "Red."], examples, family))

    assert [each.answer for each in made] == ["One.", "Red."]
    assert [each.pictures for each in made] == [examples[0].pictures, examples[2].pictures]
    assert [each.request for each in made] == [request_of(chosen[n], examples) for n in (0, 2)]
    labelled = [i for i in made[0].tokens.labels if i != IGNORED]
    assert labelled == made[0].tokens.token_ids[-len(labelled) :]


def test_a_question_may_be_about_two_pictures_or_none(tmp_path: Path) -> None:
    family = load_tiny(tmp_path, "idefics2").family
    examples = make_examples(family, 3)
    for count in (2, 0):
        chosen = choose_questions(examples, lambda *_, n=count: ("Which?", n), count=1, seed=0)
        made = list(replay_examples(chosen, ["A.", "B.", "C."], examples, family))
        assert [len(each.pictures) for each in made] == [count] * 3
        assert [each.request for each in made] == [request_of(each, examples) for each in chosen]
    assert [each.about[:1] for each in chosen] == [()] * 3


def test_the_built_in_model_is_asked_about_other_subjects_mostly_those_that_are_there() -> None:
    rng, answer = random.Random(0), "PHOTO // a blue star above a red heart //"
    drawn = [own_question(rng, answer) for _ in range(2000)]
    assert {count for _, count in drawn} == {0, 1, 2}
    exists = [text for text, _ in drawn if text.startswith(("Is there", "Do you", "Can you see"))]
    there = [text for text in exists if "star" in text or "heart" in text]
    assert 0.6 < len(there) / len(exists) < 0.95
    assert len({text for text, _ in drawn}) > 200
    assert not any("digit" in text or "word" in text for text, _ in drawn)
    known = {text for texts in KNOWN_QUESTIONS.values() for text in texts}
    texts = {own_question(rng, "")[0] for _ in range(9000)}
    assert {text for text in known if "digit" in text or "images" in text} <= texts | {
        "What color is the digit?"
    }


def test_cut_answers_are_left_out() -> None:
    found = [Completion(" Red. ", 1, 0, 2, "stop"), Completion("and and", 1, 0, 64, "length")]
    assert whole_answers(found) == ["Red.", None]


def test_answers_come_back_from_their_file() -> None:
    answers = ["Zw\u00f6lf.", None, ""]
    assert from_json(to_json(answers), 3) == answers
    assert from_json(to_json(answers), 2) is None
    assert from_json(b"no", 1) is None
