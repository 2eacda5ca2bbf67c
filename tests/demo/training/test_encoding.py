"""The built-in model's labels: those of its chat template and of the processor of transformers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from idefics_cli.demo.build import PAD_ID
from idefics_cli.demo.conversations import pair_conversation, single_conversation
from idefics_cli.demo.drawing import render
from idefics_cli.demo.questions import Question
from idefics_cli.demo.scenes import scene_for_split
from idefics_cli.demo.training.encoding import Encoder, LabelledConversation
from idefics_cli.models.families.protocols import Processor
from idefics_cli.models.families.spec import END_OF_UTTERANCE, IMAGE_TOKEN
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
