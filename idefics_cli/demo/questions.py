"""Questions about one picture, with answers that are computed from its scene.

As in `scenes.py`, the order of the random draws must stay: the tokenizer and the training data
depend on it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from idefics_cli.demo.scenes import (
    COLORS,
    SHAPES,
    Lettering,
    Scene,
    SceneObject,
    capitalized,
    caption,
    with_article,
)
from idefics_cli.demo.wordings import WORDINGS

COUNTS = ("Zero.", "One.", "Two.", "Three.")
"""The answers to "How many ...?"."""

_PLACES = (
    ("Top left.", "Top.", "Top right."),
    ("Left.", "Center.", "Right."),
    ("Bottom left.", "Bottom.", "Bottom right."),
)
_ATTEMPTS = 20
# The tasks to draw from, for scenes with shapes and for scenes with text. A task that is listed
# several times is drawn more often.
_SHAPE_MIX = (
    *["caption"] * 3,
    *["color"] * 2,
    *["shape"] * 2,
    "count",
    *["position"] * 2,
    *["exists"] * 3,
    "size",
    "background",
    "color_at",
    *["shape_at"] * 2,
)
_TEXT_MIX = (
    *["caption"] * 4,
    *["text"] * 6,
    *["text_color"] * 2,
    *["background"] * 2,
    "count",
    "exists",
)
TASKS = tuple(dict.fromkeys(_SHAPE_MIX + _TEXT_MIX))
"""The kinds of questions about one picture. No scene fits all of them."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its only right answer, and the kind of the question (*task*)."""

    task: str
    question: str
    answer: str


def any_question(scene: Scene, rng: random.Random) -> Question:
    """Return a question that fits *scene*; *rng* chooses task, wording and object."""
    mix = _SHAPE_MIX if scene.lettering is None else _TEXT_MIX
    for _ in range(_ATTEMPTS):
        question = _ASK[rng.choice(mix)](scene, rng)
        if question is not None:
            return question
    return _ask_caption(scene, rng)


def ask(scene: Scene, rng: random.Random, task: str) -> Question | None:
    """Return a question of *task* (one of `TASKS`), or None if it does not fit *scene*.

    If *task* is `text`, the returned question has the task `digit` or `word`.
    """
    for _ in range(_ATTEMPTS):
        question = _ASK[task](scene, rng)
        if question is not None:
            return question
    return None


def follow_up_questions(
    scene: Scene, rng: random.Random, *, turns: int | None = None
) -> list[Question]:
    """Return 2 or 3 questions about the same thing, at most *turns*.

    The first names the thing. The later ones call it "it", and have the tasks `follow_up` and
    `second_follow_up`.
    """
    if scene.lettering is not None:
        color = capitalized(scene.lettering.color) + "."
        first = _ask_lettering(scene.lettering, rng)
        return [first, Question("follow_up", rng.choice(WORDINGS["its_color"]), color)]
    thing = rng.choice(scene.objects)
    first, left = _first_of_follow_ups(scene, thing, rng)
    rng.shuffle(left)
    answers = {
        "its_color": capitalized(thing.color) + ".",
        "its_place": _PLACES[thing.row][thing.column],
        "its_size": _size(thing),
    }
    asked = left[: (turns or rng.choice([2, 2, 3])) - 1]
    later = [
        Question(task, rng.choice(WORDINGS[key]), answers[key])
        for task, key in zip(("follow_up", "second_follow_up"), asked, strict=False)
    ]
    return [first, *later]


def only_of_shape(scene: Scene) -> list[SceneObject]:
    """Return the objects whose shape occurs once, so that "the star" is clear."""
    shapes = [thing.shape for thing in scene.objects]
    return [thing for thing in scene.objects if shapes.count(thing.shape) == 1]


def _only_of_color(scene: Scene) -> list[SceneObject]:
    colors = [thing.color for thing in scene.objects]
    return [thing for thing in scene.objects if colors.count(thing.color) == 1]


def _first_of_follow_ups(
    scene: Scene, thing: SceneObject, rng: random.Random
) -> tuple[Question, list[str]]:
    """Return a first question about *thing*, and the keys of `WORDINGS` for the question after it.

    That second question calls the thing "it".
    """
    draw = rng.random()
    if len(scene.objects) == 1 and draw < 0.3:
        return _ask_caption(scene, rng), ["its_place"]
    if draw < 0.65 and thing in _only_of_color(scene):
        question = _worded(rng, "shape", thing.color, _shape(thing))
        return question, ["its_place", "its_size"]
    question = _worded(rng, "shape_at", _where(thing), _shape(thing))
    return question, ["its_color", "its_size"]


def _worded(rng: random.Random, task: str, about: str, answer: str) -> Question:
    return Question(task, rng.choice(WORDINGS[task]).format(about), answer)


def _shape(thing: SceneObject) -> str:
    return capitalized(with_article(thing.shape)) + "."


def _size(thing: SceneObject) -> str:
    return "Large." if thing.is_large else "Small."


def _where(thing: SceneObject) -> str:
    place = _PLACES[thing.row][thing.column][:-1].lower()
    if place == "center" or " " in place:
        return f"in the {place}"
    return f"on the {place}" if place in ("left", "right") else f"at the {place}"


def _named(scene: Scene, rng: random.Random) -> tuple[SceneObject, str]:
    """Return an object and words that identify it: "star" or "red star"."""
    thing = rng.choice(scene.objects)
    by_shape = thing in only_of_shape(scene) and rng.random() < 0.6
    return thing, thing.shape if by_shape else thing.name


# Each task has a function, which returns a question. If the task does not fit the scene, it returns
# None and draws nothing from the generator. `exists` draws a thing that should be absent, and also
# returns None if the scene has this thing.


def _ask_caption(scene: Scene, rng: random.Random) -> Question:
    return Question("caption", rng.choice(WORDINGS["caption"]), caption(scene))


def _ask_background(scene: Scene, rng: random.Random) -> Question:
    answer = capitalized(scene.background) + "."
    return Question("background", rng.choice(WORDINGS["background"]), answer)


def _ask_count(scene: Scene, rng: random.Random) -> Question:
    return Question("count", rng.choice(WORDINGS["count"]), COUNTS[len(scene.objects)])


def _ask_exists(scene: Scene, rng: random.Random) -> Question | None:
    is_there = scene.lettering is None and rng.random() < 0.5
    if scene.objects:
        thing = rng.choice(scene.objects)
        color, shape = thing.color, thing.shape
    else:
        color, shape = rng.choice(tuple(COLORS)), rng.choice(SHAPES)
    by_shape = rng.random() < 0.3
    if not is_there:
        if by_shape or rng.random() >= 0.5:
            shape = rng.choice(SHAPES)
        else:
            color = rng.choice(tuple(COLORS))
        if any(
            thing.shape == shape and (by_shape or thing.color == color) for thing in scene.objects
        ):
            return None
    named = with_article(shape) if by_shape else f"{with_article(color)} {shape}"
    return _worded(rng, "exists", named, "Yes." if is_there else "No.")


def _ask_color(scene: Scene, rng: random.Random) -> Question | None:
    candidates = only_of_shape(scene)
    if not candidates:
        return None
    thing = rng.choice(candidates)
    answer = capitalized(thing.color) + "."
    if len(scene.objects) == 1 and rng.random() < 0.3:
        return Question("color", "What color is the shape?", answer)
    return _worded(rng, "color", thing.shape, answer)


def _ask_shape(scene: Scene, rng: random.Random) -> Question | None:
    candidates = _only_of_color(scene)
    if not candidates:
        return None
    thing = rng.choice(candidates)
    if len(scene.objects) == 1 and rng.random() < 0.5:
        return Question("shape", rng.choice(WORDINGS["only_shape"]), _shape(thing))
    return _worded(rng, "shape", thing.color, _shape(thing))


def _ask_position(scene: Scene, rng: random.Random) -> Question | None:
    if not scene.objects:
        return None
    thing, reference = _named(scene, rng)
    return _worded(rng, "position", reference, _PLACES[thing.row][thing.column])


def _ask_size(scene: Scene, rng: random.Random) -> Question | None:
    if not scene.objects:
        return None
    thing, reference = _named(scene, rng)
    return _worded(rng, "size", reference, _size(thing))


def _ask_color_at(scene: Scene, rng: random.Random) -> Question | None:
    if not scene.objects:
        return None
    thing = rng.choice(scene.objects)
    return _worded(rng, "color_at", _where(thing), capitalized(thing.color) + ".")


def _ask_shape_at(scene: Scene, rng: random.Random) -> Question | None:
    if not scene.objects:
        return None
    thing = rng.choice(scene.objects)
    return _worded(rng, "shape_at", _where(thing), _shape(thing))


def _ask_text(scene: Scene, rng: random.Random) -> Question | None:
    return None if scene.lettering is None else _ask_lettering(scene.lettering, rng)


def _ask_lettering(lettering: Lettering, rng: random.Random) -> Question:
    noun = lettering.noun
    wording = rng.choice(WORDINGS[noun if rng.random() < 0.6 else "text"])
    return Question(noun, wording, lettering.text + ".")


def _ask_text_color(scene: Scene, rng: random.Random) -> Question | None:
    if scene.lettering is None:
        return None
    answer = capitalized(scene.lettering.color) + "."
    if rng.random() < 0.2:
        return Question("text_color", f"What color is the {scene.lettering.noun}?", answer)
    return _worded(rng, "text_color", "", answer)


_ASK: Mapping[str, Callable[[Scene, random.Random], Question | None]] = MappingProxyType(
    {
        "caption": _ask_caption,
        "background": _ask_background,
        "count": _ask_count,
        "exists": _ask_exists,
        "color": _ask_color,
        "shape": _ask_shape,
        "position": _ask_position,
        "size": _ask_size,
        "color_at": _ask_color_at,
        "shape_at": _ask_shape_at,
        "text": _ask_text,
        "text_color": _ask_text_color,
    }
)
