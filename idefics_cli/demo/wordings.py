"""The questions that the built-in model was trained on, word for word.

To other questions the model gives wrong answers. `{}` stands for the subject of a question. The
order of the questions must stay, because they are drawn by index.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

WORDINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "caption": (
            "Describe the image.",
            "Describe this image.",
            "What do you see in this image?",
            "What do we see in this image?",
            "Caption this image.",
            "What is in this image?",
            "What is in the image?",
            "What do you see?",
            "Write a caption.",
            "What does this image show?",
            "Describe this picture.",
            "Can you describe this image?",
            "Please describe the image.",
        ),
        "background": (
            "What color is the background?",
            "What is the background color?",
            "Which color is the background?",
            "What is the color of the background?",
        ),
        "count": (
            "How many shapes are there?",
            "How many shapes are in the image?",
            "How many shapes do you see?",
            "Count the shapes.",
            "How many objects are there?",
        ),
        "color": (
            "What color is the {}?",
            "Which color is the {}?",
            "What is the color of the {}?",
            "Tell me the color of the {}.",
        ),
        "shape": (
            "What shape is {}?",
            "Which shape is {}?",
            "What is the {} shape?",
            "Name the {} shape.",
        ),
        "only_shape": (
            "What shape is this?",
            "What shape is it?",
            "Which shape do you see?",
            "What shape is in the image?",
        ),
        "position": (
            "Where is the {}?",
            "Where in the image is the {}?",
            "In which part of the image is the {}?",
            "What is the position of the {}?",
        ),
        "size": (
            "Is the {} large or small?",
            "What size is the {}?",
            "How large is the {}?",
        ),
        "exists": (
            "Is there {}?",
            "Is there {} in the image?",
            "Do you see {}?",
            "Can you see {}?",
        ),
        "color_at": (
            "What color is the shape {}?",
            "Which color is the shape {}?",
            "What is the color of the shape {}?",
        ),
        "shape_at": (
            "What shape is {}?",
            "Which shape is {}?",
            "Which shape do you see {}?",
        ),
        "digit": (
            "What digit is this?",
            "Which digit is shown?",
            "Which digit do you see?",
            "What number is this?",
            "Read the digit.",
        ),
        "word": (
            "What word is this?",
            "Which word is shown?",
            "Which word do you see?",
            "Read the word.",
        ),
        "text": (
            "What does the text say?",
            "Read the text.",
            "What is written in the image?",
            "What is written here?",
        ),
        "text_color": (
            "What color is the text?",
            "What is the text color?",
            "Which color is the text?",
            "What is the color of the text?",
        ),
        "its_color": ("What color is it?", "And its color?", "Which color is it?"),
        "its_place": ("Where is it?", "And where is it?", "Where is it in the image?"),
        "its_size": ("Is it large or small?", "What size is it?", "And its size?"),
    }
)
"""Questions about one picture, by task. Those of an `its_` task come after another question."""

PAIR_WORDINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "pair_caption": (
            "Describe the {which} image.",
            "What is in the {which} image?",
            "What do you see in the {which} image?",
            "Caption the {which} image.",
        ),
        "pair_other": ("And the {which} image?",),
        "pair_more": (
            "Which image has more shapes?",
            "Which of the two images has more shapes?",
        ),
        "pair_same_background": (
            "Do both images have the same background color?",
            "Do the two images have the same background?",
        ),
        "pair_background": (
            "What color is the background of the {which} image?",
            "What is the background color of the {which} image?",
        ),
        "pair_color": (
            "What color is the {shape} in the {which} image?",
            "Which color is the {shape} in the {which} image?",
        ),
        "pair_count": (
            "How many shapes are in the {which} image?",
            "How many shapes does the {which} image have?",
        ),
        "pair_text": (
            "What is written in the {which} image?",
            "What does the {which} image say?",
        ),
    }
)
"""Questions about two pictures, by task. `{which}` stands for "first" or "second"."""

SMALL_TALK = (
    ("Hello.", "Hello! Show me an image."),
    ("Hello!", "Hello! Show me an image."),
    ("Hi!", "Hello! Show me an image."),
    ("Hi.", "Hello! Show me an image."),
    ("What can you do?", "I describe simple images."),
    ("Who are you?", "I am a tiny demo model."),
    ("What are you?", "I am a tiny demo model."),
    ("Thanks.", "You are welcome."),
    ("Thank you!", "You are welcome."),
    ("Thank you.", "You are welcome."),
)
"""Messages without a picture, and their answers."""

_EXAMPLES = {
    "color": "star",
    "shape": "red",
    "position": "heart",
    "size": "circle",
    "exists": "a red star",
    "color_at": "in the top left",
    "shape_at": "at the top",
}


def _examples() -> Mapping[str, tuple[str, ...]]:
    single = {
        task: tuple(wording.format(_EXAMPLES.get(task, "")) for wording in wordings)
        for task, wordings in WORDINGS.items()
    }
    pair = {
        task: tuple(wording.format(which="second", shape="star") for wording in wordings)
        for task, wordings in PAIR_WORDINGS.items()
    }
    # These wordings are written in `questions.py`, which draws the first in 3 of 10 cases and the
    # others in 2 of 10.
    single["color"] += ("What color is the shape?",)
    single["text_color"] += ("What color is the digit?", "What color is the word?")
    talk = {"small_talk": tuple(message for message, _ in SMALL_TALK)}
    return MappingProxyType(single | pair | talk)


KNOWN_QUESTIONS: Mapping[str, tuple[str, ...]] = _examples()
"""Every question by task, with an example of a thing, a place or an image in place of `{}`.

The model also knows the other shapes, colours and places of `scenes.py`. It understands a question
without its final mark or its capital letter, too.
"""
