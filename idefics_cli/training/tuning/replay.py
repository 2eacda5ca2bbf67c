"""Replay: the model's own answers to other questions, so that training does not erase its skills.

A model that learns captions of one style only soon gives them to every question. Rows with its own
answers, from before the training, keep what it can (Huang et al. 2024, arXiv 2403.01244).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from idefics_cli.core.json_text import parse_json
from idefics_cli.core.types import Attachment, Completion, GenerationRequest, Message
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.picture import PictureTensors
from idefics_cli.training.data.row import TrainingRow
from idefics_cli.training.examples import TrainingExample, encode_row

ANSWER_TOKENS = 64
"""Largest length of an answer; longer ones are not replayed."""
_SHARED = "replay"
_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class ReplayQuestion:
    """A question about the pictures of examples.

    Attributes:
        example: Index of the example for which it is asked.
        text: The question.
        about: Indexes of the examples whose first picture it is about, in order.
    """

    example: int
    text: str
    about: tuple[int, ...]


Ask: TypeAlias = Callable[[random.Random, str], tuple[str, int]]
"""Draws a question for an example with this answer; returns it, and its number of pictures."""


def choose_questions(
    examples: Sequence[TrainingExample], ask: Ask, *, count: float, seed: int
) -> list[ReplayQuestion]:
    """Return questions about the pictures of *examples*; the same arguments give the same ones.

    Args:
        examples: Those without a picture get no question.
        ask: Draws a question.
        count: Number of questions for each picture, on average.
        seed: Chooses the questions.
    """
    able = [i for i, e in enumerate(examples) if e.pictures and e.request.mode == "chat"]
    chosen: list[ReplayQuestion] = []
    for index in able:
        rng = random.Random(f"{_SHARED} {seed} {index}")
        number = int(count) + (rng.random() < count % 1)
        found: dict[str, ReplayQuestion] = {}
        for _ in range(_ATTEMPTS * number):
            if len(found) == number:
                break
            text, pictures = ask(rng, examples[index].answer)
            about = (index, *rng.choices(able, k=pictures))[:pictures]
            found.setdefault(text, ReplayQuestion(index, text, about))
        chosen += found.values()
    return chosen


def request_of(question: ReplayQuestion, examples: Sequence[TrainingExample]) -> GenerationRequest:
    """Return *question* as a request."""
    pictures = (examples[index].sources[0] for index in question.about)
    return GenerationRequest((Message("user", (*pictures, question.text)),))


def replay_examples(
    questions: Sequence[ReplayQuestion],
    answers: Sequence[str | None],
    examples: Sequence[TrainingExample],
    family: Family,
) -> Iterator[TrainingExample]:
    """Yield an example for each of *questions* whose answer is not None.

    Args:
        questions: See `choose_questions`.
        answers: The answer to each of them.
        examples: The examples that the questions are about.
        family: Family of the model.
    """
    for question, answer in zip(questions, answers, strict=True):
        if not answer:
            continue
        about = [examples[index] for index in question.about]
        user = request_of(question, examples).messages[0]
        key = examples[question.example].key
        row = TrainingRow(key, (user, Message("assistant", (answer,))), (False, True))
        known: Mapping[Attachment, PictureTensors] = {
            each.sources[0]: PictureTensors(each.pictures[0]) for each in about
        }
        yield encode_row(row, family, known.__getitem__)


def whole_answers(completions: Sequence[Completion]) -> list[str | None]:
    """Return the text of each of *completions*; None for one that was cut."""
    return [each.text.strip() if each.finish == "stop" else None for each in completions]


def to_json(answers: Sequence[str | None]) -> bytes:
    """Return *answers* for a file."""
    return json.dumps(list(answers), ensure_ascii=False).encode() + b"\n"


def from_json(content: bytes, count: int) -> list[str | None] | None:
    """Return the answers in *content*; None if they are not *count* answers."""
    try:
        found = parse_json(content)
    except ValueError:
        return None
    if not isinstance(found, list) or len(found) != count:
        return None
    return [each if isinstance(each, str) else None for each in found]
