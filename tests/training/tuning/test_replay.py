"""Rows with a model's own answers to other questions."""

from __future__ import annotations

from pathlib import Path

from idefics_cli.core.types import Completion
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


def test_questions_depend_on_the_seed_only_and_have_the_asked_number(tmp_path: Path) -> None:
    examples = make_examples(load_tiny(tmp_path, "idefics2").family, 40)
    once, again = (choose_questions(examples, QUESTIONS, count=1.5, seed=3) for _ in range(2))
    assert once == again != choose_questions(examples, QUESTIONS, count=1.5, seed=4)
    assert 45 <= len(once) <= 75
    assert {each.example for each in once} == set(range(40))
    assert len({(each.example, each.text) for each in once}) == len(once)
    assert choose_questions(examples, QUESTIONS, count=0, seed=3) == []
    assert choose_questions(examples, (), count=1, seed=3) == []


def test_an_answer_becomes_a_row_about_the_same_picture(tmp_path: Path) -> None:
    family = load_tiny(tmp_path, "idefics3").family
    examples = make_examples(family, 3)
    chosen = choose_questions(examples, QUESTIONS, count=1, seed=0)
    made = list(replay_examples(chosen, ["One.", None, "Red."], examples, family))

    assert [each.answer for each in made] == ["One.", "Red."]
    assert [each.pictures for each in made] == [examples[0].pictures, examples[2].pictures]
    assert [each.request for each in made] == [request_of(chosen[n], examples) for n in (0, 2)]
    labelled = [i for i in made[0].tokens.labels if i != IGNORED]
    assert labelled == made[0].tokens.token_ids[-len(labelled) :]


def test_cut_answers_are_left_out() -> None:
    found = [Completion(" Red. ", 1, 0, 2, "stop"), Completion("and and", 1, 0, 64, "length")]
    assert whole_answers(found) == ["Red.", None]


def test_answers_come_back_from_their_file() -> None:
    answers = ["Zw\u00f6lf.", None, ""]
    assert from_json(to_json(answers), 3) == answers
    assert from_json(to_json(answers), 2) is None
    assert from_json(b"no", 1) is None
