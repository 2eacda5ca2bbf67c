"""Conversations as token ids with labels, by the label rule of the model documentation.

A label is -100 (no loss) for padding, image and user-turn tokens; the assistant's answers and
the `<end_of_utterance>` after each are learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics_cli.demo.build import LATENTS
from idefics_cli.demo.questions import Question
from idefics_cli.models.families.protocols import Processor
from idefics_cli.models.families.spec import END_OF_UTTERANCE, FAKE_TOKEN, IMAGE_TOKEN

IGNORED = -100


@dataclass(frozen=True, slots=True)
class LabelledConversation:
    """Turns about the images of the first turn.

    Attributes:
        turns: User and assistant alternate; the answers are the labels.
        images: How many the first turn shows: 0, 1 or 2.
        images_last: Whether they come after the first question instead of before it.
    """

    turns: tuple[Question, ...]
    images: int
    images_last: bool = False

    def messages(self) -> list[dict[str, object]]:
        """Return the conversation in the form that chat templates take."""
        messages: list[dict[str, object]] = []
        for index, turn in enumerate(self.turns):
            images = [{"type": "image"}] * (self.images if index == 0 else 0)
            text = [{"type": "text", "text": turn.question}]
            content = text + images if self.images_last else images + text
            answer = [{"type": "text", "text": turn.answer}]
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": answer})
        return messages


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """Where the tokens of an answer are, its `<end_of_utterance>` included."""

    task: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids and labels (both T long), and the answers in them."""

    token_ids: list[int]
    labels: list[int]
    answers: tuple[LabelledAnswer, ...]


class Encoder:
    """Gives what template, processor and tokenizer give, many times faster.

    The tokenizer never merges over a special token, so the segments between them are encoded
    once each and remembered. A test compares it with the processor.
    """

    def __init__(self, processor: Processor) -> None:
        self._tokenizer = processor.tokenizer
        self._segments: dict[str, list[int]] = {}
        self._begin = self._special("<s>")
        self._end = self._special(END_OF_UTTERANCE)
        self._fake = self._special(FAKE_TOKEN)
        self._image = self._special(IMAGE_TOKEN)

    def encode(self, conversation: LabelledConversation) -> Encoded:
        """Return ids and labels of the whole conversation, without a newline at the end."""
        token_ids, labels = [self._begin], [IGNORED]
        answers = []
        lead = self._segment("\nAssistant:")
        for index, turn in enumerate(conversation.turns):
            prompt = self._user_turn(conversation, index) + lead
            # Encoded with its lead: alone, the answer would begin with another metaspace.
            answer = self._segment("\nAssistant: " + turn.answer)[len(lead) :]
            answer = [*answer, self._end]
            start = len(token_ids) + len(prompt)
            token_ids += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
            answers.append(LabelledAnswer(turn.task, start, len(token_ids)))
        return Encoded(token_ids, labels, tuple(answers))

    def _user_turn(self, conversation: LabelledConversation, index: int) -> list[int]:
        question = conversation.turns[index].question
        if index > 0:
            return [*self._segment("\nUser: " + question), self._end]
        if conversation.images == 0:
            return [*self._segment("User: " + question), self._end]
        images = [self._fake]
        images += ([self._image] * LATENTS + [self._fake]) * conversation.images
        if conversation.images_last:
            return [*self._segment("User: " + question), *images, self._end]
        # The processor puts a space after the closing fake token.
        return [*self._segment("User:"), *images, *self._segment(" " + question), self._end]

    def _segment(self, text: str) -> list[int]:
        if text not in self._segments:
            encoded = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            self._segments[text] = encoded
        return self._segments[text]

    def _special(self, token: str) -> int:
        found = self._tokenizer.convert_tokens_to_ids(token)
        if found is None:
            raise ValueError(f"the tokenizer has no {token}")
        return found


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Conversations of different length, padded on the right with 0.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64; 0 on padding.
        labels: (B, T) int64; `IGNORED` on padding.
        answers: Of each of the B conversations.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    answers: tuple[tuple[LabelledAnswer, ...], ...]


def collate(encoded: Sequence[Encoded]) -> TokenBatch:
    """Return *encoded* as one batch."""
    shape = (len(encoded), max(len(each.token_ids) for each in encoded))
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, each in enumerate(encoded):
        length = len(each.token_ids)
        input_ids[row, :length] = torch.tensor(each.token_ids)
        attention_mask[row, :length] = 1
        labels[row, :length] = torch.tensor(each.labels)
    return TokenBatch(input_ids, attention_mask, labels, tuple(each.answers for each in encoded))
