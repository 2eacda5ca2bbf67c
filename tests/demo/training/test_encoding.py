"""The built-in model's labels: those of its chat template and of the processor of transformers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from idefics_cli.core.types import Attachment, LoadSpec, Message, Part
from idefics_cli.demo.build import PAD_ID
from idefics_cli.demo.conversations import pair_conversation, single_conversation
from idefics_cli.demo.drawing import render
from idefics_cli.demo.questions import Question
from idefics_cli.demo.scenes import scene_for_split
from idefics_cli.demo.training.encoding import Encoder, LabelledConversation
from idefics_cli.demo.training.evaluate import WEIGHTS
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.protocols import Processor
from idefics_cli.models.families.spec import END_OF_UTTERANCE, IMAGE_TOKEN
from idefics_cli.models.loading.loader import load_config, load_family
from idefics_cli.training.data.row import TrainingRow
from idefics_cli.training.examples import encode_row
from idefics_cli.training.labels import IGNORED, pad_batch


def conversations() -> list[tuple[LabelledConversation, list[int]]]:
    """Return conversations with 0, 1 and 2 images, before and after the question."""
    rng = random.Random(0)
    greeting = LabelledConversation((Question("t", "Hello!", "Hello! Show me an image."),), 0)
    found: list[tuple[LabelledConversation, list[int]]] = [(greeting, [])]
    for i in range(12):
        scenes = (scene_for_split("train", i), scene_for_split("train", i + 1))
        one = LabelledConversation(tuple(single_conversation(scenes[0], rng)), 1, i % 2 == 0)
        two = LabelledConversation(tuple(pair_conversation(scenes, rng)), 2, i % 3 == 0)
        found += [(one, [i]), (two, [i, i + 1])]
    return found


def processed(
    processor: Processor, messages: list[dict[str, object]], shown: Sequence[int], *, prompt: bool
) -> list[int]:
    """Return the ids that template, processor and tokenizer give."""
    text = processor.apply_chat_template(messages, add_generation_prompt=prompt)
    # The template ends a conversation with a newline, which is not learned.
    images = [[render(scene_for_split("train", i)) for i in shown]] if shown else None
    library: Any = processor  # the protocol has less than the class of transformers
    inputs = library(text=text.removesuffix("\n"), images=images, return_tensors="pt")
    ids: list[int] = inputs["input_ids"][0].tolist()
    return ids


@pytest.mark.parametrize(("conversation", "shown"), conversations())
def test_only_answers_and_their_end_are_learned(
    processor: Processor, conversation: LabelledConversation, shown: list[int]
) -> None:
    """The other route is the template of the first n turns, with and without the answer."""
    messages = conversation.messages()
    expected = [IGNORED] * len(processed(processor, messages, shown, prompt=False))
    for turn in range(len(conversation.turns)):
        asked = processed(processor, messages[: 2 * turn + 1], shown, prompt=True)
        answered = processed(processor, messages[: 2 * turn + 2], shown, prompt=False)
        assert answered[: len(asked)] == asked
        expected[len(asked) : len(answered)] = answered[len(asked) :]

    encoded = Encoder(processor).encode(conversation)

    assert encoded.tokens.token_ids == processed(processor, messages, shown, prompt=False)
    assert encoded.tokens.labels == expected
    assert [a.task for a in encoded.answers] == [turn.task for turn in conversation.turns]


@pytest.fixture(scope="module")
def family() -> Family:
    return load_family(WEIGHTS, LoadSpec(str(WEIGHTS), "idefics2"), load_config(WEIGHTS))


def test_the_labels_are_those_of_the_rule_for_every_family(
    processor: Processor, family: Family
) -> None:
    """The encoder of the built-in model is the fast twin of `encode_row`."""
    for conversation, shown in conversations():
        scenes = iter(shown)
        messages: list[Message] = []
        for number, turn in enumerate(conversation.turns):
            parts: list[Part] = [turn.question]
            images = [Attachment(str(next(scenes))) for _ in shown] if number == 0 else []
            parts = [*parts, *images] if conversation.images_last else [*images, *parts]
            messages += [Message("user", tuple(parts)), Message("assistant", (turn.answer,))]
        learned = tuple(message.role == "assistant" for message in messages)
        row = TrainingRow("row", tuple(messages), learned)
        example = encode_row(
            row,
            family,
            lambda each: family.preprocess(render(scene_for_split("train", int(each.source)))),
        )

        assert example.tokens == Encoder(processor).encode(conversation).tokens


def test_padding_and_images_are_not_learned(processor: Processor) -> None:
    rows = [Encoder(processor).encode(each).tokens for each, _ in conversations()]
    batch = pad_batch(rows, pad_id=PAD_ID)
    image = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    assert (batch.labels[batch.attention_mask == 0] == IGNORED).all()
    assert (batch.attention_mask == 0).any()
    assert (batch.labels[batch.input_ids == image] == IGNORED).all()
    learned = batch.labels != IGNORED
    assert (batch.labels[learned] == batch.input_ids[learned]).all()
    end = processor.tokenizer.convert_tokens_to_ids(END_OF_UTTERANCE)
    assert end is not None
    turns = [len(each.turns) for each, _ in conversations()]
    assert torch.eq(batch.labels, end).sum(1).tolist() == turns
