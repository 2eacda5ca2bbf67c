"""Questions about two pictures, and the conversations that the training shows."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from idefics_cli.demo.questions import (
    COUNTS,
    Question,
    any_question,
    follow_up_questions,
    only_of_shape,
)
from idefics_cli.demo.scenes import Scene, capitalized, caption
from idefics_cli.demo.wordings import PAIR_WORDINGS

ScenePair = tuple[Scene, Scene]

_ORDINALS = ("first", "second")
_ATTEMPTS = 20
# The tasks to draw from. A task that is listed several times is drawn more often.
_MIX = (
    *["pair_caption"] * 2,
    "pair_more",
    "pair_same_background",
    *["pair_color"] * 2,
    "pair_count",
    "pair_background",
    "pair_text",
)
PAIR_TASKS = tuple(dict.fromkeys(_MIX))
"""The kinds of questions about two pictures. Some do not fit some pairs of scenes."""


def any_pair_question(scenes: ScenePair, rng: random.Random) -> Question:
    """Return a question that fits *scenes*; *rng* chooses task, wording and picture."""
    for _ in range(_ATTEMPTS):
        question = _ASK[rng.choice(_MIX)](scenes, rng.randrange(2), rng)
        if question is not None:
            return question
    return _ask_caption(scenes, rng.randrange(2), rng)


def ask_pair(scenes: ScenePair, rng: random.Random, task: str) -> Question | None:
    """Return a question of *task* (one of `PAIR_TASKS`), or None if it does not fit *scenes*."""
    for _ in range(_ATTEMPTS):
        question = _ASK[task](scenes, rng.randrange(2), rng)
        if question is not None:
            return question
    return None


def single_conversation(scene: Scene, rng: random.Random, *, turns: int = 5) -> list[Question]:
    """Return about *turns* questions about one picture; no two have the same task and answer."""
    conversation: list[Question] = []
    seen: set[str] = set()
    for _ in range(turns * 4):
        if len(conversation) >= turns:
            break
        if rng.random() < 0.25:
            questions = follow_up_questions(scene, rng)
        else:
            questions = [any_question(scene, rng)]
        # A second question with this task and answer is left out, because the model could copy its
        # answer from the earlier turn.
        key = questions[0].task + questions[0].answer
        if key not in seen:
            seen.add(key)
            conversation += questions
    return conversation


def pair_conversation(scenes: ScenePair, rng: random.Random, *, turns: int = 4) -> list[Question]:
    """Return at most *turns* different questions about two pictures."""
    conversation: list[Question] = []
    seen: set[str] = set()
    if rng.random() < 0.2:
        conversation = _both_captions(scenes, rng.randrange(2))
        seen = {"pair_caption"}
    for _ in range(turns * 4):
        if len(conversation) >= turns:
            break
        question = any_pair_question(scenes, rng)
        once = question.task in ("pair_more", "pair_same_background", "pair_caption")
        if question.question in seen or (once and question.task in seen):
            continue
        seen |= {question.question, question.task}
        conversation.append(question)
    return conversation


def _both_captions(scenes: ScenePair, first: int) -> list[Question]:
    """Return the caption of picture *first* (0 or 1), then "And the other image?"."""
    wordings = (PAIR_WORDINGS["pair_caption"][0], PAIR_WORDINGS["pair_other"][0])
    return [
        Question("pair_caption", wording.format(which=_ORDINALS[i]), caption(scenes[i]))
        for wording, i in zip(wordings, (first, 1 - first), strict=True)
    ]


def _worded(
    rng: random.Random, task: str, answer: str, *, which: int = 0, shape: str = ""
) -> Question:
    wording = rng.choice(PAIR_WORDINGS[task])
    return Question(task, wording.format(which=_ORDINALS[which], shape=shape), answer)


# Each task has one of the functions below. The function returns a question, or None if the task
# does not fit the scenes; it then leaves `rng` as it was, so that the attempt changes no later
# question.


def _ask_caption(scenes: ScenePair, which: int, rng: random.Random) -> Question:
    return _worded(rng, "pair_caption", caption(scenes[which]), which=which)


def _ask_same_background(scenes: ScenePair, which: int, rng: random.Random) -> Question:
    is_same = scenes[0].background == scenes[1].background
    return _worded(rng, "pair_same_background", "Yes." if is_same else "No.")


def _ask_background(scenes: ScenePair, which: int, rng: random.Random) -> Question:
    answer = capitalized(scenes[which].background) + "."
    return _worded(rng, "pair_background", answer, which=which)


def _ask_text(scenes: ScenePair, which: int, rng: random.Random) -> Question | None:
    lettering = scenes[which].lettering
    if lettering is None:
        return None
    return _worded(rng, "pair_text", lettering.text + ".", which=which)


def _ask_more(scenes: ScenePair, which: int, rng: random.Random) -> Question | None:
    if scenes[0].lettering or scenes[1].lettering:
        return None
    more = len(scenes[0].objects) - len(scenes[1].objects)
    if more == 0:
        return _worded(rng, "pair_more", "They have the same number.")
    return _worded(rng, "pair_more", f"The {_ORDINALS[more < 0]} image.")


def _ask_count(scenes: ScenePair, which: int, rng: random.Random) -> Question | None:
    if scenes[which].lettering:
        return None
    return _worded(rng, "pair_count", COUNTS[len(scenes[which].objects)], which=which)


def _ask_color(scenes: ScenePair, which: int, rng: random.Random) -> Question | None:
    candidates = only_of_shape(scenes[which])
    if not candidates:
        return None
    thing = rng.choice(candidates)
    answer = capitalized(thing.color) + "."
    return _worded(rng, "pair_color", answer, which=which, shape=thing.shape)


_ASK: Mapping[str, Callable[[ScenePair, int, random.Random], Question | None]] = MappingProxyType(
    {
        "pair_caption": _ask_caption,
        "pair_same_background": _ask_same_background,
        "pair_background": _ask_background,
        "pair_text": _ask_text,
        "pair_more": _ask_more,
        "pair_count": _ask_count,
        "pair_color": _ask_color,
    }
)
