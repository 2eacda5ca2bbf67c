"""Encoding of conversations about scenes: token ids, and labels for the training.

For speed, this module does itself what the chat template and the processor of the built-in model
do. So it works for that model only. `training/labels.py` labels conversations of any model.
"""

from __future__ import annotations

from dataclasses import dataclass

from idefics_cli.demo.build import LATENTS
from idefics_cli.demo.questions import Question
from idefics_cli.models.families.protocols import Processor
from idefics_cli.models.families.spec import END_OF_UTTERANCE, FAKE_TOKEN, IMAGE_TOKEN
from idefics_cli.training.labels import LabelledTokens


@dataclass(frozen=True, slots=True)
class LabelledConversation:
    """A conversation whose answers are learned, and whose images are all in the first turn.

    Attributes:
        turns: The questions with their answers.
        images: Number of images in the first turn: 0, 1 or 2.
        images_last: Whether the images come after the first question instead of before it.
    """

    turns: tuple[Question, ...]
    images: int
    images_last: bool = False

    def messages(self) -> list[dict[str, object]]:
        """Return the conversation in the form that chat templates expect."""
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
    """The position of an answer among the tokens of a conversation.

    It begins at the index *start* and ends before *stop*. Its last token is `<end_of_utterance>`.
    """

    task: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """The token ids of a conversation with their labels, and the positions of its answers."""

    tokens: LabelledTokens
    answers: tuple[LabelledAnswer, ...]


class Encoder:
    """Returns the same token ids as chat template and processor, but many times faster.

    The tokenizer never merges across a special token. So this class encodes each piece of text
    between special tokens once, and keeps the result. A test compares it with the processor.

    Args:
        processor: Processor of the built-in model.
    """

    def __init__(self, processor: Processor) -> None:
        self._tokenizer = processor.tokenizer
        self._segments: dict[str, list[int]] = {}
        self._begin = self._special("<s>")
        self._end = self._special(END_OF_UTTERANCE)
        self._fake = self._special(FAKE_TOKEN)
        self._image = self._special(IMAGE_TOKEN)

    def encode(self, conversation: LabelledConversation) -> EncodedConversation:
        """Return ids and labels of the whole conversation, without a newline at the end."""
        token_ids = [self._begin]
        answers = []
        lead = self._segment("\nAssistant:")
        for index, turn in enumerate(conversation.turns):
            token_ids += self._user_turn(conversation, index) + lead
            start = len(token_ids)
            # The answer is encoded together with the text before it. Encoded alone, it would begin
            # with an additional "▁".
            token_ids += self._segment("\nAssistant: " + turn.answer)[len(lead) :]
            token_ids.append(self._end)
            answers.append(LabelledAnswer(turn.task, start, len(token_ids)))
        learned = (slice(answer.start, answer.stop) for answer in answers)
        return EncodedConversation(LabelledTokens.learning(token_ids, learned), tuple(answers))

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
        # The processor puts a space between the last image and the question.
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
