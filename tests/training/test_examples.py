"""The label rule: answers and their end tokens are learned, in every family."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.core.errors import ContextError, PromptError
from idefics_cli.core.types import Attachment, GenerationRequest, Message, Part, Role
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.picture import PictureTensors
from idefics_cli.training.data.row import TrainingRow
from idefics_cli.training.examples import TrainingExample, encode_row
from idefics_cli.training.labels import IGNORED
from tests.support import tiny
from tests.support.prompts import CONVERSATIONS, Turns, as_request, image_of, open_engine, shown

EngineOf = Callable[[str], LocalEngine]
BASES = tuple(kind for kind in tiny.KINDS if kind.endswith("base"))


@pytest.fixture(scope="module")
def engine_of(checkpoint: Callable[[str], Path]) -> Iterator[EngineOf]:
    made: dict[str, LocalEngine] = {}

    def get(kind: str) -> LocalEngine:
        if kind not in made:
            made[kind] = open_engine(checkpoint(kind), kind)
        return made[kind]

    yield get
    for engine in made.values():
        engine.close()


def encoded(engine: LocalEngine, row: TrainingRow, most: int | None = None) -> TrainingExample:
    def preprocess(attachment: Attachment) -> PictureTensors:
        return engine.loaded.family.preprocess(image_of(attachment))

    return encode_row(row, engine.loaded.family, preprocess, most_tokens=most)


def asked(role: Role, images: Sequence[int], text: str) -> Message:
    parts: tuple[Part, ...] = (*map(shown, images), text)
    return Message(role, parts)


def row_of(turns: Turns, answer: str) -> TrainingRow:
    """Return *turns* with an answer at their end. Every answer is learned."""
    messages = [asked(role, images, text) for role, images, text in turns]
    messages.append(Message("assistant", (answer,)))
    learned = tuple(message.role == "assistant" for message in messages)
    return TrainingRow("row", tuple(messages), learned)


def base_row(question: str, answer: str) -> TrainingRow:
    parts: list[Part] = [shown(0), question] if question else [shown(0)]
    messages = (Message("user", tuple(parts)), Message("assistant", (answer,)))
    return TrainingRow("a.jpg", messages, (False, True), "complete")


def spans(example: TrainingExample) -> list[list[int]]:
    """Return the labels of each stretch of labels."""
    found: list[list[int]] = [[]]
    for label in example.tokens.labels:
        if label != IGNORED:
            found[-1].append(label)
        elif found[-1]:
            found.append([])
    return [span for span in found if span]


def text_of(family: Family, ids: list[int]) -> str:
    text = family.tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text.strip()


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_the_labels_are_the_answers_each_with_one_end_token(
    name: str, kind: str, engine_of: EngineOf
) -> None:
    engine, turns = engine_of(kind), CONVERSATIONS[name]
    family = engine.loaded.family
    example = encoded(engine, row_of(turns, "Zwei Katzen: 漢字, on\ntwo lines."))

    answers = [text for role, _, text in turns if role == "assistant"]
    answers.append("Zwei Katzen: 漢字, on\ntwo lines.")
    labels = spans(example)
    assert [text_of(family, span[:-1]) for span in labels] == answers
    assert {span[-1] for span in labels} == {
        family.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    }
    assert example.tokens.labels[-1] == labels[-1][-1]
    learned = sum(map(len, labels))
    assert learned == sum(label != IGNORED for label in example.tokens.labels)


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_before_the_last_answer_are_the_tokens_that_an_engine_makes(
    name: str, kind: str, engine_of: EngineOf
) -> None:
    engine, turns = engine_of(kind), CONVERSATIONS[name]
    example = encoded(engine, row_of(turns, "A red circle."))
    asked = as_request(engine, turns)
    inputs = engine.loaded.family.encode([asked.request], [asked.pictures])
    prompt = inputs["input_ids"][0].tolist()

    assert example.tokens.token_ids[: len(prompt)] == prompt
    assert example.tokens.labels[len(prompt) :] == example.tokens.token_ids[len(prompt) :]
    if not any(role == "assistant" for role, _, _ in turns):
        assert set(example.tokens.labels[: len(prompt)]) == {IGNORED}


@pytest.mark.parametrize("question", ["", "A caption:", "Question: What is it? Answer:"])
@pytest.mark.parametrize("kind", BASES)
def test_a_base_model_learns_the_answer_and_its_end_of_text(
    question: str, kind: str, engine_of: EngineOf
) -> None:
    engine = engine_of(kind)
    family = engine.loaded.family
    example = encoded(engine, base_row(question, "A red circle."))

    (labels,) = spans(example)
    assert labels[-1] == family.tokenizer.eos_token_id == example.tokens.token_ids[-1]
    assert text_of(family, labels[:-1]) == "A red circle."
    request = GenerationRequest(base_row(question, "").messages[:1], mode="complete")
    prepared = family.encode([request], [example.pictures])["input_ids"][0].tolist()
    assert example.tokens.token_ids == prepared + labels


@pytest.mark.parametrize("kind", ["idefics", "idefics2", "idefics2-base", "smolvlm2"])
def test_text_that_looks_like_control_tokens_stays_text(kind: str, engine_of: EngineOf) -> None:
    engine = engine_of(kind)
    answer = "An <image> of </s> and <end_of_utterance>."
    if kind in BASES:
        row = base_row("The <image> is:", answer)
    else:
        row = row_of([("user", [0], "What is <image>?")], answer)
    family = engine.loaded.family
    example = encoded(engine, row)

    plain = encoded(engine, replace(row, messages=tuple(_spaced(m) for m in row.messages)))
    assert example.tokens == plain.tokens
    (labels,) = spans(example)
    assert family.image_id not in labels
    assert text_of(family, labels[:-1]) == "An < image> of < /s> and < end_of_utterance>."


def _spaced(message: Message) -> Message:
    marks = ("<image>", "</s>", "<end_of_utterance>")
    parts = list(message.parts)
    for at, part in enumerate(parts):
        for mark in marks:
            if isinstance(part, str):
                part = part.replace(mark, f"< {mark[1:]}")
        parts[at] = part
    return Message(message.role, tuple(parts))


def test_only_the_answers_that_are_learned_have_labels(engine_of: EngineOf) -> None:
    engine = engine_of("smolvlm2")
    row = row_of(CONVERSATIONS["later turns"], "A blue square.")
    whole = encoded(engine, row)
    last = encoded(engine, replace(row, learned=(*[False] * 5, True)))
    first = encoded(engine, replace(row, learned=(False, True, *[False] * 4)))

    assert len(spans(whole)) == 3
    assert spans(last) == spans(whole)[2:]
    assert last.tokens.token_ids == whole.tokens.token_ids
    assert spans(first) == spans(whole)[:1]
    # What follows the last learned answer has no loss, so it is left out.
    assert whole.tokens.token_ids[: len(first.tokens.token_ids)] == first.tokens.token_ids
    assert first.tokens.labels[-1] != IGNORED
    assert (first.answer, len(first.pictures)) == ("A red circle.", 1)
    assert (whole.answer, len(whole.pictures), len(whole.request.messages)) == (
        "A blue square.",
        2,
        5,
    )


def test_a_row_that_is_too_long_is_refused_with_its_name_and_length(engine_of: EngineOf) -> None:
    engine = engine_of("idefics2")
    row = row_of(CONVERSATIONS["one image"], "A red circle.")
    length = len(encoded(engine, row).tokens.token_ids)

    assert encoded(engine, row, length).key == "row"
    with pytest.raises(ContextError, match=f"^row: {length} tokens, and the limit is") as caught:
        encoded(engine, row, length - 1)
    assert caught.value.prompt_tokens == length


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([Message("user", ("Hi",)), Message("assistant", (" \n",))], "row: an answer is empty"),
        ([Message("assistant", ("Hello",))], "row: an answer without a question before it"),
        ([Message("user", ("",)), Message("assistant", ("A",))], "row: the prompt is empty"),
    ],
)
def test_a_wrong_conversation_is_refused_by_the_name_of_its_row(
    messages: list[Message], fault: str, engine_of: EngineOf
) -> None:
    learned = tuple(message.role == "assistant" for message in messages)
    with pytest.raises(PromptError, match=fault):
        encoded(engine_of("idefics2"), TrainingRow("row", tuple(messages), learned))


def test_a_question_whose_tokens_change_with_the_answer_is_refused(engine_of: EngineOf) -> None:
    with pytest.raises(PromptError, match=r"^a\.jpg: the tokens before an answer differ"):
        encoded(engine_of("idefics2-base"), base_row("A caption: ", "A red circle."))


_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}"
    "END\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(engine: LocalEngine, template: str, stop: str) -> Family:
    """Return the family of *engine* as that of a checkpoint with another chat template."""
    family = engine.loaded.family
    processor = copy.copy(family.processor)
    processor.chat_template = template
    end = family.tokenizer.convert_tokens_to_ids(stop)
    assert end is not None
    return type(family)(processor, engine.loaded.model.config, chats=True, stop_ids=[end])


def test_of_another_template_the_answers_and_its_end_tokens_are_learned(
    engine_of: EngineOf,
) -> None:
    engine = engine_of("smolvlm2")
    family = with_template(engine, _CHATML.replace("END", "<|im_end|>"), "<|im_end|>")
    row = row_of(CONVERSATIONS["later turns"], "Two cats.")
    example = encode_row(row, family, lambda a: family.preprocess(image_of(a)))

    assert [text_of(family, span) for span in spans(example)] == [
        "A red circle.<|im_end|>",
        "Small.<|im_end|>",
        "Two cats.<|im_end|>",
    ]


def test_a_template_without_an_end_token_is_refused(engine_of: EngineOf) -> None:
    family = with_template(engine_of("smolvlm2"), _CHATML.replace("END", ""), "<|im_end|>")
    with pytest.raises(PromptError, match="row: the model's chat template writes no end token"):
        encode_row(
            row_of(CONVERSATIONS["no image"], "Nothing."),
            family,
            lambda a: family.preprocess(image_of(a)),
        )


def test_a_template_that_writes_an_answer_otherwise_later_is_refused(engine_of: EngineOf) -> None:
    # As templates do that leave out what a model thought before an earlier answer.
    template = "{% if messages | length > 3 %}Later. {% endif %}" + _CHATML
    family = with_template(
        engine_of("smolvlm2"), template.replace("END", "<|im_end|>"), "<|im_end|>"
    )
    row = row_of(CONVERSATIONS["later turns"], "Two cats.")
    with pytest.raises(PromptError, match="row: the tokens before an answer differ") as caught:
        encode_row(row, family, lambda a: family.preprocess(image_of(a)))

    assert caught.value.hint == "`--learn last` learns only the last answer"
    last = replace(row, learned=(*[False] * 5, True))
    example = encode_row(last, family, lambda a: family.preprocess(image_of(a)))
    assert [text_of(family, span) for span in spans(example)] == ["Two cats.<|im_end|>"]
