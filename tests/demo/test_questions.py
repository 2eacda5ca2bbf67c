"""The answers of questions about scenes, found by another route."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from idefics_cli.demo.conversations import (
    PAIR_TASKS,
    ask_pair,
    pair_conversation,
    single_conversation,
)
from idefics_cli.demo.questions import (
    TASKS,
    Question,
    any_question,
    ask,
    follow_up_questions,
)
from idefics_cli.demo.scenes import (
    COLORS,
    SHAPES,
    Lettering,
    Scene,
    SceneObject,
    scene_for_split,
)
from idefics_cli.demo.wordings import KNOWN_QUESTIONS

PLACES = [
    *("in the top left", "at the top", "in the top right", "on the left", "in the center"),
    *("on the right", "in the bottom left", "at the bottom", "in the bottom right"),
]
STAR = SceneObject("red", "star", 0, 2, True, 40, 250, 50)
CIRCLE = SceneObject("blue", "circle", 1, 1, False, 20, 150, 150)
SECOND_STAR = SceneObject("blue", "star", 2, 0, False, 20, 50, 250)
SHAPES_SCENE = Scene("gray", 300, 300, 1, objects=(STAR, CIRCLE, SECOND_STAR))
ONE_SHAPE = Scene("pink", 300, 300, 2, objects=(STAR,))
WORD_SCENE = Scene("white", 300, 200, 3, lettering=Lettering("moon", "green"))


def answers(scene: Scene, task: str) -> dict[str, str]:
    """Return question -> answer over many draws of one task."""
    rng = random.Random(0)
    asked = [ask(scene, rng, task) for _ in range(2000)]
    return {question.question: question.answer for question in asked if question}


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("color", "What color is the circle?", "Blue."),
        ("shape", "What shape is red?", "A star."),
        ("position", "Where is the red star?", "Top right."),
        ("position", "Where is the circle?", "Center."),
        ("position", "Where is the blue star?", "Bottom left."),
        ("size", "Is the red star large or small?", "Large."),
        ("size", "What size is the circle?", "Small."),
        ("count", "How many shapes are there?", "Three."),
        ("background", "What color is the background?", "Gray."),
        ("color_at", "What color is the shape in the top right?", "Red."),
        ("shape_at", "What shape is in the center?", "A circle."),
        ("exists", "Is there a red star?", "Yes."),
        ("exists", "Is there a red circle?", "No."),
        ("exists", "Do you see a heart?", "No."),
        ("exists", "Do you see a star?", "Yes."),
        (
            "caption",
            "Describe this image.",
            "A red star, a blue circle and a blue star on a gray background.",
        ),
    ],
)
def test_questions_about_shapes_are_answered_from_the_scene(
    task: str, question: str, answer: str
) -> None:
    assert answers(SHAPES_SCENE, task)[question] == answer


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("text", "What word is this?", "moon."),
        ("text", "What does the text say?", "moon."),
        ("text_color", "What color is the text?", "Green."),
        ("text_color", "What color is the word?", "Green."),
        ("count", "How many shapes are there?", "Zero."),
        ("exists", "Is there a red star?", "No."),
        ("caption", "Describe this image.", "The word moon in green on a white background."),
    ],
)
def test_questions_about_text_are_answered_from_the_scene(
    task: str, question: str, answer: str
) -> None:
    assert answers(WORD_SCENE, task)[question] == answer


def test_a_word_that_two_objects_share_names_neither() -> None:
    assert not any("the star" in question for question in answers(SHAPES_SCENE, "color"))
    assert not any("blue" in question for question in answers(SHAPES_SCENE, "shape"))
    assert not any("the star?" in question for question in answers(SHAPES_SCENE, "size"))


@pytest.mark.parametrize("task", ["color", "shape", "position", "size", "color_at", "shape_at"])
def test_a_text_scene_offers_no_question_about_shapes(task: str) -> None:
    assert ask(WORD_SCENE, random.Random(0), task) is None


@pytest.mark.parametrize("task", ["text", "text_color"])
def test_a_shape_scene_offers_no_question_about_text(task: str) -> None:
    assert ask(SHAPES_SCENE, random.Random(0), task) is None


def test_existence_is_true_of_the_scene_and_both_ways_alike() -> None:
    rng = random.Random(1)
    tally: Counter[str] = Counter()
    for seed in range(600):
        scene = scene_for_split("combo", seed)
        question = ask(scene, rng, "exists")
        if question is None or not scene.objects:
            continue
        shape = next(shape for shape in SHAPES if shape in question.question)
        color = next((color for color in COLORS if color in question.question), None)
        is_there = any(o.shape == shape and color in (None, o.color) for o in scene.objects)
        tally[question.answer] += 1

        assert question.answer == ("Yes." if is_there else "No.")
    assert 0.4 < tally["Yes."] / tally.total() < 0.65


def test_follow_ups_speak_of_the_thing_in_the_first_answer() -> None:
    facts = {"large or small": "Large.", "color": "Red.", "here": "Top right.", "size": "Large."}
    for seed in range(50):
        first, *later = follow_up_questions(ONE_SHAPE, random.Random(seed))

        assert first.task in ("shape", "shape_at", "caption")
        assert [q.task for q in later] == ["follow_up", "second_follow_up"][: len(later)]
        for question in later:
            key = next(key for key in facts if key in question.question)
            assert question.answer == facts[key]


def test_a_conversation_never_repeats_a_task_with_its_answer() -> None:
    rng = random.Random(2)
    for seed in range(200):
        turns = single_conversation(scene_for_split("train", seed), rng)
        openings = [(t.task, t.answer) for t in turns if "follow_up" not in t.task]

        assert len(openings) == len(set(openings))
        assert 1 <= len(turns) <= 7


PAIR = (SHAPES_SCENE, WORD_SCENE)


@pytest.mark.parametrize(
    ("scenes", "task", "expected"),
    [
        (PAIR, "pair_count", {"How many shapes are in the first image?": "Three."}),
        (PAIR, "pair_text", {"What is written in the second image?": "moon."}),
        (PAIR, "pair_same_background", {"Do the two images have the same background?": "No."}),
        (
            PAIR,
            "pair_background",
            {
                "What color is the background of the first image?": "Gray.",
                "What color is the background of the second image?": "White.",
            },
        ),
        (PAIR, "pair_color", {"What color is the circle in the first image?": "Blue."}),
        (PAIR, "pair_more", {}),
        (
            (ONE_SHAPE, SHAPES_SCENE),
            "pair_more",
            {"Which image has more shapes?": "The second image."},
        ),
        (
            (SHAPES_SCENE, ONE_SHAPE),
            "pair_more",
            {"Which image has more shapes?": "The first image."},
        ),
        (
            (ONE_SHAPE, ONE_SHAPE),
            "pair_more",
            {"Which image has more shapes?": "They have the same number."},
        ),
        (
            PAIR,
            "pair_caption",
            {"Describe the second image.": "The word moon in green on a white background."},
        ),
    ],
)
def test_questions_about_two_pictures_know_which_is_which(
    scenes: tuple[Scene, Scene], task: str, expected: dict[str, str]
) -> None:
    rng = random.Random(0)
    asked = [ask_pair(scenes, rng, task) for _ in range(100)]
    found = {question.question: question.answer for question in asked if question}

    assert expected.items() <= found.items()
    assert bool(found) == bool(expected)


def test_pair_conversations_never_repeat_a_question() -> None:
    rng = random.Random(3)
    for seed in range(200):
        scenes = (scene_for_split("train", seed), scene_for_split("train", seed + 1))
        asked = [turn.question for turn in pair_conversation(scenes, rng)]

        assert len(asked) == len(set(asked)) <= 4


def test_every_question_asked_has_a_listed_wording() -> None:
    listed = {wording for wordings in KNOWN_QUESTIONS.values() for wording in wordings}
    shown = sorted({*COLORS, *SHAPES, *PLACES, "first", "second"}, key=len, reverse=True)
    things = "|".join(rf"an? (?:{c}) (?:{s})|an? {s}|{c} {s}" for c in COLORS for s in SHAPES)
    gap = re.compile(f"{things}|{'|'.join(shown)}")
    rng = random.Random(4)
    forms = {gap.sub("_", wording) for wording in listed}
    for seed in range(300):
        scenes = (scene_for_split("combo", seed), scene_for_split("combo", seed + 1))
        for turn in single_conversation(scenes[0], rng) + pair_conversation(scenes, rng):
            assert gap.sub("_", turn.question) in forms, turn


def test_the_listing_covers_every_task_and_has_no_gap_left_in_it() -> None:
    assert KNOWN_QUESTIONS.keys() >= {*TASKS, *PAIR_TASKS, "digit", "word", "small_talk"}
    for wordings in KNOWN_QUESTIONS.values():
        for wording in wordings:
            assert "{" not in wording
            assert "  " not in wording


def test_a_question_is_equal_by_value() -> None:
    same = [any_question(ONE_SHAPE, random.Random(9)) for _ in range(2)]

    assert same[0] == same[1]
    assert isinstance(same[0], Question)
