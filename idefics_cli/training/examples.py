"""Training examples: the tokens of a row with their labels, for models of every family."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from idefics_cli.core.errors import ContextError, PromptError
from idefics_cli.core.types import Attachment, GenerationRequest, Message, Part
from idefics_cli.core.units import counted
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.picture import PictureTensors, PreparedPicture
from idefics_cli.training.data.row import TrainingRow
from idefics_cli.training.labels import LabelledTokens

MOST_VALIDATION = 200
"""Largest number of examples that are split off for validation."""


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A row as the model takes it, without pixels.

    Attributes:
        key: The name of the row in messages.
        tokens: Token ids and labels. They end with the end token of the last learned answer.
        pictures: The pictures of the conversation, in order.
        sources: Where each of *pictures* is read from.
        request: The conversation before the last learned answer. This is what an engine gets, so
            that its reply can be compared with *answer*.
        answer: The last learned answer.
        content: Digest of the files of the pictures. Without pictures, of the question.
    """

    key: str
    tokens: LabelledTokens
    pictures: tuple[PreparedPicture, ...]
    sources: tuple[Attachment, ...]
    request: GenerationRequest
    answer: str
    content: bytes


def encode_row(
    row: TrainingRow,
    family: Family,
    preprocess: Callable[[Attachment], PictureTensors],
    *,
    most_tokens: int | None = None,
) -> TrainingExample:
    """Return the tokens of *row*, with labels on its learned answers and their end tokens.

    The conversation is tokenized as a whole. The tokens before each learned answer are those of
    the request to which the model will give this answer; this is checked.

    Args:
        row: A conversation with at least one learned answer. What follows the last one is left out.
        family: Family of the model.
        preprocess: Returns the tensors of a picture.
        most_tokens: Largest number of tokens of an example; None for any number.

    Raises:
        PromptError: If the model cannot take the conversation. The message names `row.key`.
        ContextError: If it has more tokens than *most_tokens*.
        ImageError: If a picture cannot be read.
    """
    messages = _broken_up(row, family)
    sources = tuple(a for message in messages for a in message.attachments)
    pictures = tuple(preprocess(each).picture for each in sources)
    with _naming(row.key):
        tokens = _labelled(row, messages, pictures, family, most_tokens)
    request = _request(row, messages[:-1])
    return TrainingExample(
        row.key,
        tokens,
        pictures,
        sources,
        request,
        messages[-1].text.strip(),
        _content(request, pictures),
    )


def split_examples(
    examples: Sequence[TrainingExample], share: float, *, most: int = MOST_VALIDATION
) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """Return the examples to train on, and those to validate with, each in the order given.

    Examples with a picture in common are on one side. The content of the pictures alone decides
    the side, so further examples move no earlier one, unless *most* or half of all is reached.

    Args:
        examples: All examples.
        share: Expected share of the second part, 0 to 1. Unless it is 0, the second part has at
            least one example if the examples have two unrelated pictures.
        most: Largest number of examples of the second part.
    """
    groups = sorted(_related(examples))
    if share <= 0 or len(groups) < 2:
        return list(examples), []
    most = max(1, min(most, len(examples) // 2))
    chosen: set[int] = set()
    for digest, members in groups:
        if chosen and int.from_bytes(digest[:8], "big") >= share * 2**64:
            break
        if len(chosen) + len(members) <= most:
            chosen.update(members)
    training = [each for at, each in enumerate(examples) if at not in chosen]
    return training, [examples[at] for at in sorted(chosen)]


def find_shared(
    training: Sequence[TrainingExample], validation: Sequence[TrainingExample]
) -> list[TrainingExample]:
    """Return the examples of *validation* with content that *training* has, too.

    Such an example does not show what a model makes of a picture that it has not learned.
    """
    learned = {digest for example in training for digest in _contents(example)}
    return [each for each in validation if not learned.isdisjoint(_contents(each))]


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Put *key* before the message of a `PromptError`; that of a `ContextError` has it already."""
    try:
        yield
    except ContextError:
        raise
    except PromptError as error:
        raise PromptError(f"{key}: {error}", hint=error.hint) from error


def _broken_up(row: TrainingRow, family: Family) -> tuple[Message, ...]:
    """Return the messages up to the last learned answer, without control tokens in their texts."""
    last = max(at for at, is_learned in enumerate(row.learned) if is_learned)
    messages = [_plain(message, family) for message in row.messages[: last + 1]]
    if row.mode == "complete":
        # As in few-shot prompts, a space separates the answer from a raw prompt.
        *asked, answer = messages
        before = asked[-1].parts[-1] if asked and asked[-1].parts else ""
        is_apart = isinstance(before, str) and before[-1:].isspace()
        messages[-1] = replace(answer, parts=(answer.text if is_apart else f" {answer.text}",))
    return tuple(messages)


def _plain(message: Message, family: Family) -> Message:
    """Return *message* without control tokens; texts that follow each other become one."""
    parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, str) and parts and isinstance(last := parts[-1], str):
            parts[-1] = last + part
        else:
            parts.append(part)
    broken = [family.break_control_tokens(p) if isinstance(p, str) else p for p in parts]
    if message.role == "assistant":
        broken = ["".join(p for p in broken if isinstance(p, str)).strip()]
    return Message(message.role, tuple(broken))


def _labelled(
    row: TrainingRow,
    messages: Sequence[Message],
    pictures: Sequence[PreparedPicture],
    family: Family,
    most_tokens: int | None,
) -> LabelledTokens:
    whole = _ids(_request(row, messages), pictures, family)
    answers = []
    for at, (message, is_learned) in enumerate(zip(messages, row.learned, strict=False)):
        if not is_learned:
            continue
        if at == 0 or messages[at - 1].role == "assistant":
            raise PromptError("an answer without a question before it")
        if not message.text.strip():
            raise PromptError("an answer is empty")
        request = _request(row, messages[:at])
        family.check(request)
        asked = _ids(request, pictures[: len(request.attachments)], family)
        if whole[: len(asked)] != asked:
            raise PromptError(
                "the tokens before an answer differ from those of the question alone",
                hint="`--learn last` learns only the last answer"
                if len(messages) > at + 1
                else "a question that ends with a space is a usual reason",
            )
        end = next((i for i in range(len(asked), len(whole)) if whole[i] in family.stop_ids), None)
        if end is None:
            raise PromptError("the model's chat template writes no end token after an answer")
        answers.append(slice(len(asked), end + 1))
    length = answers[-1].stop
    if most_tokens is not None and length > most_tokens:
        raise ContextError(
            f"{row.key}: {counted(length, 'token')}, and the limit is {most_tokens}",
            prompt_tokens=length,
            context_tokens=most_tokens,
        )
    return LabelledTokens.learning(whole[:length], answers)


def _request(row: TrainingRow, messages: Sequence[Message]) -> GenerationRequest:
    return GenerationRequest(tuple(messages), mode=row.mode)


def _ids(
    request: GenerationRequest, pictures: Sequence[PreparedPicture], family: Family
) -> list[int]:
    ids: list[int] = family.encode([request], [pictures])["input_ids"][0].tolist()
    return ids


def _content(request: GenerationRequest, pictures: Sequence[PreparedPicture]) -> bytes:
    if pictures:
        return hashlib.sha256(b"".join(_digests(request.attachments, pictures))).digest()
    texts = "\0".join(message.text for message in request.messages)
    return hashlib.sha256(texts.encode()).digest()


def _digests(sources: Sequence[Attachment], pictures: Sequence[PreparedPicture]) -> list[bytes]:
    """Return the digest of each picture: of its file, or of its pixels if the file has none."""
    return [
        bytes.fromhex(source.digest) if source.digest else picture.digest
        for source, picture in zip(sources, pictures, strict=True)
    ]


def _contents(example: TrainingExample) -> list[bytes]:
    return _digests(example.sources, example.pictures) or [example.content]


def _related(examples: Sequence[TrainingExample]) -> Iterator[tuple[bytes, list[int]]]:
    """Yield groups of examples that share pictures: the least digest, and the indices."""
    parents: dict[bytes, bytes] = {}

    def root(digest: bytes) -> bytes:
        parents.setdefault(digest, digest)
        while parents[digest] != digest:
            parents[digest] = digest = parents[parents[digest]]
        return digest

    contents = [_contents(example) for example in examples]
    for first, *others in contents:
        for other in others:
            # The lowest digest of a group becomes its root, so that the order of the examples does
            # not matter.
            lower, higher = sorted((root(first), root(other)))
            parents[higher] = lower
    members: dict[bytes, list[int]] = defaultdict(list)
    for at, (first, *_) in enumerate(contents):
        members[root(first)].append(at)
    yield from members.items()
