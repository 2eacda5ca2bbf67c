"""Exams: questions to a saved model about scenes that training never showed.

The model answers with plain calls of transformers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    ProcessorMixin,
)

from idefics_cli.demo.conversations import PAIR_TASKS, ask_pair
from idefics_cli.demo.drawing import render
from idefics_cli.demo.questions import TASKS, Question, ask, follow_up_questions
from idefics_cli.demo.scenes import Scene, scene_for_split
from idefics_cli.models.loading.processors import load_processor

FIRST_SCENE = 100_000
"""Number of the first scene of an exam. Watches during training use lower numbers."""

ExamSplit = Literal["combo", "pair"]
_BATCH = 32
_MAX_NEW_TOKENS = 36
_GRAY = (128, 128, 128)
_MAX_TURNS = 3


@dataclass(frozen=True, slots=True)
class Exam:
    """What an exam asks, and how the model runs.

    Attributes:
        scenes: Number of scenes. The exam asks for a caption of each, and two more questions. For
            half as many it also asks a question about two pictures, and has a conversation of 2
            or 3 turns.
        split: Where the scenes come from; see `scenes.Split`.
        is_blind: Whether all pictures are gray. The marks then show what the model can guess.
        quantization: "none", or "4bit" if all linear layers are in nf4.
    """

    scenes: int
    split: ExamSplit = "combo"
    is_blind: bool = False
    quantization: Literal["none", "4bit"] = "none"


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong answer about a scene; *scene* is its number in the split."""

    scene: int
    question: Question
    answer: str


@dataclass(slots=True)
class Marks:
    """Numbers of right answers and of questions, and the wrong answers.

    Attributes:
        rows: Numbers of right answers and of questions, by the name of a row. Most rows are tasks.
            `turn 1` to `turn 3` are turns of conversations, in which the model sees its own
            earlier answers. A row with a colon in its name is a part of the row that stands
            before the colon.
        mistakes: The wrong answers.
    """

    rows: dict[str, list[int]] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def count(self, row: str, *, is_right: bool) -> None:
        """Add one question to *row*."""
        self._add(row, int(is_right), 1)

    def add(self, other: Marks) -> None:
        """Add all marks of *other*."""
        for row, (right, asked) in other.rows.items():
            self._add(row, right, asked)
        self.mistakes += other.mistakes

    def percent(self, row: str) -> float:
        """Return the share of right answers in percent; 0 without questions."""
        right, asked = self.rows.get(row, (0, 0))
        return 100 * right / max(1, asked)

    def _add(self, row: str, right: int, asked: int) -> None:
        counts = self.rows.setdefault(row, [0, 0])
        counts[0] += right
        counts[1] += asked


@dataclass(slots=True)
class Dialogue:
    """A conversation in progress.

    Attributes:
        images: Pictures of the first message.
        messages: Messages for the chat template.
    """

    images: list[Image.Image]
    messages: list[dict[str, object]] = field(default_factory=list)

    def add_question(self, question: str) -> None:
        """Add a message of the user."""
        images = [] if self.messages else [{"type": "image"}] * len(self.images)
        text = {"type": "text", "text": question}
        self.messages.append({"role": "user", "content": [*images, text]})

    def add_answer(self, answer: str) -> None:
        """Add a message of the model."""
        content = [{"type": "text", "text": answer}]
        self.messages.append({"role": "assistant", "content": content})


class ExamTaker(Protocol):
    """A model that takes an exam."""

    def answer(self, dialogues: Sequence[Dialogue]) -> list[str]:
        """Return the next answer in each dialogue."""
        ...


class ExaminedModel:
    """A saved model that answers greedily.

    Args:
        folder: Folder that `save_pretrained` wrote.
        device: "cpu", "cuda" or "mps".
        dtype: Dtype of weights and computation.
        quantization: See `Exam`.
    """

    def __init__(
        self, folder: Path, *, device: str, dtype: torch.dtype, quantization: str = "none"
    ) -> None:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        self._processor = cast(ProcessorMixin, load_processor(folder, config))
        settings: dict[str, object] = {"dtype": dtype, "device_map": {"": device}}
        if quantization == "4bit":
            settings["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            )
        self._model = AutoModelForImageTextToText.from_pretrained(
            folder, trust_remote_code=False, **settings
        ).eval()
        self._device = device
        self._dtype = dtype

    def answer(self, dialogues: Sequence[Dialogue]) -> list[str]:
        """Return the next answer in each dialogue, in batches padded on the left."""
        answers: list[str] = []
        for start in range(0, len(dialogues), _BATCH):
            answers += self._answer_batch(dialogues[start : start + _BATCH])
        return answers

    def _answer_batch(self, dialogues: Sequence[Dialogue]) -> list[str]:
        prompts = [
            self._processor.apply_chat_template(each.messages, add_generation_prompt=True)
            for each in dialogues
        ]
        images = [each.images for each in dialogues]
        inputs = self._processor(text=prompts, images=images, padding=True, return_tensors="pt")
        inputs = inputs.to(self._device, self._dtype)
        generated = self._model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        new = generated[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.batch_decode(new, skip_special_tokens=True)
        return [str(text).strip() for text in texts]


def take_exam(exam: Exam, candidate: ExamTaker, *, part: int = 0, parts: int = 1) -> Marks:
    """Ask *candidate* one part of the questions: every *parts*-th one, from number *part* on.

    The sum of the marks of all parts does not depend on the number of parts.
    """
    marks = Marks()
    _take_singles(exam, candidate, marks, range(part, exam.scenes, parts))
    _take_pairs(exam, candidate, marks, range(part, exam.scenes // 2, parts))
    _take_conversations(exam, candidate, marks, range(part, exam.scenes // 2, parts))
    return marks


def _take_singles(exam: Exam, candidate: ExamTaker, marks: Marks, indices: Sequence[int]) -> None:
    dialogues, asked = [], []
    for index in indices:
        scene = _scene(exam, index)
        image = _picture(exam, scene)
        for question in _single_questions(scene, _rng(exam, "single", index)):
            dialogue = Dialogue([image])
            dialogue.add_question(question.question)
            dialogues.append(dialogue)
            asked.append((index, scene, question))
    answers = candidate.answer(dialogues)
    for (index, scene, question), answer in zip(asked, answers, strict=True):
        is_right = _mark(marks, index, question, answer)
        for detail in _details(scene, question):
            marks.count(f"{question.task}: {detail}", is_right=is_right)


def _take_pairs(exam: Exam, candidate: ExamTaker, marks: Marks, indices: Sequence[int]) -> None:
    dialogues, asked = [], []
    for index in indices:
        drawn = _pair_question(exam, index)
        if drawn is not None:
            scenes, question = drawn
            dialogue = Dialogue([_picture(exam, scene) for scene in scenes])
            dialogue.add_question(question.question)
            dialogues.append(dialogue)
            asked.append((index, question))
    for (index, question), answer in zip(asked, candidate.answer(dialogues), strict=True):
        _mark(marks, index, question, answer)


def _take_conversations(
    exam: Exam, candidate: ExamTaker, marks: Marks, indices: Sequence[int]
) -> None:
    talks = []
    for index in indices:
        scene = _scene(exam, index)
        questions = follow_up_questions(scene, _rng(exam, "talk", index), turns=_MAX_TURNS)
        talks.append((index, questions, Dialogue([_picture(exam, scene)])))
    is_right = dict.fromkeys(indices, True)
    for turn in range(_MAX_TURNS):
        open_talks = [talk for talk in talks if len(talk[1]) > turn]
        for _, questions, dialogue in open_talks:
            dialogue.add_question(questions[turn].question)
        answers = candidate.answer([dialogue for _, _, dialogue in open_talks])
        for (index, questions, dialogue), answer in zip(open_talks, answers, strict=True):
            dialogue.add_answer(answer)
            question = Question(
                f"turn {turn + 1}", questions[turn].question, questions[turn].answer
            )
            is_right[index] &= _mark(marks, index, question, answer)
    for each in is_right.values():
        marks.count("turns: all right", is_right=each)


def _mark(marks: Marks, index: int, question: Question, answer: str) -> bool:
    is_right = answer == question.answer
    marks.count(question.task, is_right=is_right)
    if not is_right:
        marks.mistakes.append(Mistake(FIRST_SCENE + index, question, answer))
    return is_right


def _single_questions(scene: Scene, rng: random.Random) -> Iterator[Question]:
    """Yield a caption and two questions of other tasks; each task that fits is equally likely."""
    left = 3
    others = [task for task in TASKS if task != "caption"]
    for task in ("caption", *rng.sample(others, len(others))):
        question = ask(scene, rng, task)
        if question is not None and left:
            left -= 1
            yield question


def _pair_question(exam: Exam, index: int) -> tuple[tuple[Scene, Scene], Question] | None:
    """Return two scenes and a question about them.

    The tasks take turns, and "Yes." is the answer as often as "No.". None means that the split has
    no scenes for the task: for example, scenes of the split `pair` have no text.
    """
    rng = _rng(exam, "pair", index)
    task = PAIR_TASKS[index % len(PAIR_TASKS)]
    wants_same = rng.random() < 0.5
    for _ in range(100):
        first, second = (_scene(exam, each) for each in rng.sample(range(exam.scenes), 2))
        is_same = first.background == second.background
        if task == "pair_same_background" and is_same != wants_same:
            continue
        question = ask_pair((first, second), rng, task)
        if question is not None:
            return (first, second), question
    return None


def _details(scene: Scene, question: Question) -> Iterator[str]:
    if question.task == "caption":
        count = ("", "one shape", "two shapes", "three shapes")[len(scene.objects)]
        yield count if scene.lettering is None else scene.lettering.noun
    if question.task == "exists":
        yield question.answer[:-1].lower()


def _scene(exam: Exam, index: int) -> Scene:
    return scene_for_split(exam.split, FIRST_SCENE + index)


def _picture(exam: Exam, scene: Scene) -> Image.Image:
    if exam.is_blind:
        return Image.new("RGB", (scene.width, scene.height), _GRAY)
    return render(scene, jpeg=True)


def _rng(exam: Exam, purpose: str, index: int) -> random.Random:
    return random.Random(f"exam-{exam.split}-{purpose}-{index}")
