"""Questions by which the built-in model keeps its skills while it learns something else."""

from __future__ import annotations

import random
import re

from idefics_cli.demo.scenes import COLORS, SHAPES, with_article
from idefics_cli.demo.wordings import PAIR_WORDINGS, SMALL_TALK, WORDINGS

_PLACES = (
    *(f"in the {row} {column}" for row in ("top", "bottom") for column in ("left", "right")),
    *("at the top", "at the bottom", "on the left", "on the right", "in the center"),
)
_ABOUT_SHAPES = ("count", "color", "shape", "position", "size", "exists", "color_at", "shape_at")
_ABOUT_TEXT = ("digit", "word", "text", "text_color")
# "And the second image?" needs a question before it.
_EITHER = ("background", *(task for task in PAIR_WORDINGS if task != "pair_other"), "small_talk")
_NAMED = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b")
# Without many questions about shapes that are there, "No." would be nearly every answer to "Is
# there ...?", and the model would learn it.
_PRESENT = 0.7


def own_question(rng: random.Random, answer: str) -> tuple[str, int]:
    """Return a question that the built-in model knows, and its number of pictures: 0 to 2.

    Captions are left out, because they are what most data teaches.

    Args:
        rng: Draws the task, the wording and the subject.
        answer: What the data says about the first picture. Shapes that it names are asked for.
    """
    named = _NAMED.findall(answer)
    task = rng.choice((*(_ABOUT_SHAPES if named else _ABOUT_SHAPES + _ABOUT_TEXT), *_EITHER))
    color, shape = rng.choice(tuple(COLORS)), rng.choice(SHAPES)
    if named and rng.random() < _PRESENT:
        color, shape = rng.choice(named)
    if task == "small_talk":
        return rng.choice(SMALL_TALK)[0], 0
    if task in PAIR_WORDINGS:
        wording = rng.choice(PAIR_WORDINGS[task])
        return wording.format(which=rng.choice(("first", "second")), shape=shape), 2
    subject = {
        "shape": color,
        "exists": with_article(rng.choice((shape, f"{color} {shape}"))),
        "color_at": rng.choice(_PLACES),
        "shape_at": rng.choice(_PLACES),
        "color": shape,
    }.get(task, rng.choice((shape, f"{color} {shape}")))
    return rng.choice(WORDINGS[task]).format(subject), 1
