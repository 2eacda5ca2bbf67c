"""A conversation as a value: turns, pictures, settings, and the request for the model."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from idefics_cli.core.errors import PromptError, UsageError
from idefics_cli.core.sources import kind_of_source, without_password
from idefics_cli.core.types import (
    Attachment,
    Finish,
    GenerationRequest,
    Message,
    PictureDetail,
    Sampling,
)
from idefics_cli.models.families.picture_marks import (
    PlacedPrompt,
    check_marks,
    place_pictures,
    read_marks,
    references,
)

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class ChatPicture:
    """A picture of a conversation.

    Attributes:
        number: Counted from 1 in order of appearance; `[1]` in a text refers to picture 1.
        source: The source as the user typed it.
        attachment: The place of the picture's bytes, and their digest.
        width: Width in pixels, as a person sees the picture; 0 if unknown.
        height: Height in pixels, as a person sees the picture; 0 if unknown.
        is_dropped: Whether the user took the picture out of the prompt.
        is_missing: Whether the bytes cannot be found, so that the picture is not in the prompt.
    """

    number: int
    source: str
    attachment: Attachment
    width: int = 0
    height: int = 0
    is_dropped: bool = False
    is_missing: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hexadecimal."""
        return self.attachment.digest

    @property
    def is_in_prompt(self) -> bool:
        """Whether the picture is in the prompt, provided that its turn is."""
        return not (self.is_dropped or self.is_missing)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the model, and how it was made.

    Attributes:
        text: The whole answer, or its beginning if it was interrupted.
        finish: Why it ended; `cancelled` if it was interrupted.
        model: The name of the model.
        sampling: How its tokens were chosen.
        prompt_tokens: Number of tokens of the prompt.
        reused_tokens: Number of prompt tokens that came from the KV cache.
        new_tokens: Number of tokens of the answer.
        seconds: Time from the request to the last token.
    """

    text: str
    finish: Finish
    model: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0

    @property
    def is_interrupted(self) -> bool:
        """Whether the user stopped it."""
        return self.finish == "cancelled"


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with its pictures, and its answer.

    Attributes:
        text: The text that the user wrote, unchanged.
        pictures: The pictures that came with the text, in order; they precede it in the prompt.
        reply: The answer; None while the model answers.
        former: The earlier answer during a retry; it comes back if the retry fails.
    """

    text: str
    pictures: tuple[ChatPicture, ...] = ()
    reply: Reply | None = None
    former: Reply | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation; every operation returns a new one.

    Attributes:
        model: The name of the model that answers next.
        name: The name that the user gave the conversation, if any.
        system: The instruction that precedes the conversation.
        settings: The settings of this conversation by name.
        turns: The turns in order; only the last may have no answer.
        forgotten: Number of the oldest turns that are saved but not in the prompt.
    """

    model: str
    name: str | None = None
    system: str | None = None
    settings: Mapping[str, Value] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()
    forgotten: int = 0

    @property
    def pending(self) -> Turn | None:
        """The turn that waits for its answer, if there is one."""
        last = self.turns[-1] if self.turns else None
        return last if last is not None and last.reply is None else None

    @property
    def pictures(self) -> tuple[ChatPicture, ...]:
        """All pictures by number, the dropped ones included."""
        return tuple(picture for turn in self.turns for picture in turn.pictures)

    @property
    def pictures_in_prompt(self) -> tuple[ChatPicture, ...]:
        """The pictures in the prompt, in order."""
        turns = self.turns[self.forgotten :]
        return tuple(p for turn in turns for p in turn.pictures if p.is_in_prompt)

    @property
    def missing(self) -> tuple[ChatPicture, ...]:
        """The pictures that are not in the prompt only because they cannot be found."""
        return tuple(p for p in self.pictures if p.is_missing and not p.is_dropped)

    @property
    def title(self) -> str:
        """The name, or the first question on one line; "" if there is neither."""
        return self.name or (" ".join(self.turns[0].text.split()) if self.turns else "")

    @property
    def detail(self) -> PictureDetail:
        """How much detail of its pictures the model sees."""
        splitting, edge = self.settings.get("splitting"), self.settings.get("longest_edge")
        return PictureDetail(
            splitting if isinstance(splitting, bool) else None,
            edge if type(edge) is int else None,
        )

    def asked(self, text: str, pictures: Sequence[ChatPicture] = ()) -> Conversation:
        """Return the conversation with one more question; *pictures* get the next numbers.

        Raises:
            ValueError: If a turn is pending.
        """
        self._require(pending=False)
        # A dropped picture keeps its number, because a text may refer to it.
        first = len(self.pictures) + 1
        numbered = tuple(replace(p, number=first + i) for i, p in enumerate(pictures))
        return replace(self, turns=(*self.turns, Turn(text, numbered)))

    def replied(self, reply: Reply) -> Conversation:
        """Return the conversation with an answer to the pending turn.

        Raises:
            ValueError: If no turn is pending.
        """
        self._require(pending=True)
        return self._with_last(replace(self.turns[-1], reply=reply, former=None))

    def retried(self) -> Conversation:
        """Return the conversation with the last turn pending again; its answer becomes `former`.

        Raises:
            UsageError: If there is no turn.
            ValueError: If a turn is pending.
        """
        self._require(pending=False)
        last = self._last("retry")
        return self._with_last(replace(last, reply=None, former=last.reply))

    def rolled_back(self) -> Conversation:
        """Return the conversation without the pending turn, or with its former answer.

        Raises:
            ValueError: If no turn is pending.
        """
        self._require(pending=True)
        last = self.turns[-1]
        if last.former is None:
            return self._cut(len(self.turns) - 1)
        return self._with_last(replace(last, reply=last.former, former=None))

    def undone(self) -> Conversation:
        """Return the conversation without the last turn.

        Raises:
            UsageError: If there is no turn.
        """
        self._last("undo")
        return self._cut(len(self.turns) - 1)

    def edited(self, number: int) -> Conversation:
        """Return the conversation without turn *number*, counted from 1, and all later turns.

        Raises:
            UsageError: If there is no such turn.
        """
        if not 1 <= number <= len(self.turns):
            raise UsageError(
                f"there is no turn {number}", hint=_range_hint("turns", len(self.turns))
            )
        return self._cut(number - 1)

    def dropped(self, number: int) -> Conversation:
        """Return the conversation with picture *number* out of the prompt; its text stays.

        Raises:
            UsageError: If there is no such picture, or it was dropped before.
        """
        pictures = self.pictures
        if not 1 <= number <= len(pictures):
            hint = _range_hint("pictures", len(pictures))
            raise UsageError(f"there is no picture {number}", hint=hint)
        if pictures[number - 1].is_dropped:
            raise UsageError(f"picture {number} is already dropped")
        return self._with_pictures(
            lambda p: replace(p, is_dropped=True) if p.number == number else p
        )

    def without_oldest(self, count: int) -> Conversation:
        """Return the conversation with *count* more of the oldest turns out of the prompt.

        Raises:
            UsageError: If no turn would be left in the prompt; use `cleared` for that.
        """
        forgotten = self.forgotten + count
        if count < 1 or forgotten >= len(self.turns):
            left = len(self.turns) - self.forgotten
            raise UsageError(f"cannot forget {count} of {left} turns")
        return replace(self, forgotten=forgotten)

    def cleared(self) -> Conversation:
        """Return the conversation without turns; name, model, instruction and settings stay."""
        return self._cut(0)

    def changed(self, **fields: str | None) -> Conversation:
        """Return the conversation with another `model`, `name` or `system`."""
        unknown = fields.keys() - {"model", "name", "system"}
        if unknown or fields.get("model", "") is None:
            raise ValueError(f"cannot change {fields}")
        return replace(self, **fields)  # type: ignore[arg-type]  # checked above

    def with_setting(self, key: str, value: Value) -> Conversation:
        """Return the conversation with the setting *key*; None removes it."""
        others = {k: v for k, v in self.settings.items() if k != key}
        return replace(self, settings=others if value is None else {**others, key: value})

    def with_missing(self, digests: frozenset[str]) -> Conversation:
        """Return the conversation with the pictures of *digests*, and no others, as missing."""
        return self._with_pictures(lambda p: replace(p, is_missing=p.digest in digests))

    def check_marks(self, text: str, staged: int = 0) -> None:
        """Check that the marks of *text* fit the pictures of the conversation.

        Args:
            text: The next question.
            staged: Number of pictures that go with it.

        Raises:
            PromptError: See `picture_marks.check_marks`.
        """
        first = len(self.pictures) + 1
        own = range(first, first + staged)
        known = {*own, *(picture.number for picture in self.pictures_in_prompt)}
        if self.pictures and not known:
            known = {0}  # all pictures are dropped, and no number refers to one
        pieces = read_marks(text)
        for picture in self.pictures:
            if picture.number not in known and picture.number in references(pieces):
                raise self._left_out(picture)
        check_marks(pieces, own, known, gives="/image")

    def _left_out(self, picture: ChatPicture) -> PromptError:
        """Return the error for a text that names *picture*, which is not in the prompt."""
        state = "was forgotten with its question"
        if not picture.is_in_prompt:
            state = "was dropped" if picture.is_dropped else "cannot be found"
        number, source = picture.number, picture.source
        # What the clipboard or stdin held is gone, and a data URI is too long to type.
        is_typed = kind_of_source(source) not in ("clipboard", "stdin", "data")
        again = shlex.quote(without_password(source)) if is_typed else "PATH"
        return PromptError(
            f"the prompt has `[{number}]`, and picture {number} {state}",
            hint=rf"`/image {again}` attaches it again; `\[{number}]` is text",
        )

    def request(self, sampling: Sampling, *, sees_last_only: bool = False) -> GenerationRequest:
        """Return the request for the pending turn.

        `[1]` is the place of a picture of its own turn, and a picture of an earlier turn becomes
        "the first image". Only pictures up to the same turn are counted. So a later picture does
        not change the text of an earlier turn, and its KV cache can be reused.

        Args:
            sampling: How to answer.
            sees_last_only: Whether a text attends only to the last picture before it, as in
                IDEFICS-1. Then the pictures to which a text refers are repeated before the text.

        Raises:
            ValueError: If no turn is pending.
        """
        self._require(pending=True)
        messages = [Message("system", (self.system,))] if self.system else []
        pictures: dict[int, ChatPicture] = {}
        for turn in self.turns[self.forgotten :]:
            before = tuple(pictures)
            placement = _placed(turn, before)
            pictures |= {p.number: p for p in turn.pictures if p.is_in_prompt}
            pictures = {n: pictures[n] for n in (*before, *placement.order)}
            numbers = _visible(placement, before) if sees_last_only else _parts(placement, before)
            content = (
                p if isinstance(p, str) else replace(pictures[p].attachment, detail=self.detail)
                for p in numbers
            )
            messages.append(Message("user", tuple(content)))
            # An empty answer, which was stopped before its first word, is left out: the model would
            # take it as an example.
            if turn.reply is not None and turn.reply.text.strip():
                messages.append(Message("assistant", (turn.reply.text,)))
        return GenerationRequest(tuple(messages), sampling)

    def _require(self, *, pending: bool) -> None:
        if pending != (self.pending is not None):
            raise ValueError("no turn is pending" if pending else "a turn is pending")

    def _last(self, verb: str) -> Turn:
        if not self.turns:
            raise UsageError(f"there is nothing to {verb}")
        return self.turns[-1]

    def _with_last(self, turn: Turn) -> Conversation:
        return replace(self, turns=(*self.turns[:-1], turn))

    def _cut(self, count: int) -> Conversation:
        return replace(self, turns=self.turns[:count], forgotten=min(self.forgotten, count))

    def _with_pictures(self, change: Callable[[ChatPicture], ChatPicture]) -> Conversation:
        turns = (replace(t, pictures=tuple(change(p) for p in t.pictures)) for t in self.turns)
        return replace(self, turns=tuple(turns))


def _range_hint(things: str, count: int) -> str:
    return f"there are {count} {things}, from 1" if count else f"there are no {things} yet"


def _placed(turn: Turn, before: Sequence[int]) -> PlacedPrompt:
    """Put the pictures of *turn* in their places. A picture that is not in the prompt has none."""
    own = [picture.number for picture in turn.pictures]
    placement = place_pictures(read_marks(turn.text), own, [*before, *own])
    gone = {picture.number for picture in turn.pictures if not picture.is_in_prompt}
    return PlacedPrompt(
        tuple(number for number in placement.unnamed if number not in gone),
        tuple(f"[{piece}]" if piece in gone else piece for piece in placement.pieces),
    )


def _parts(placement: PlacedPrompt, before: Sequence[int]) -> tuple[str | int, ...]:
    order = (*before, *placement.order)
    return (*placement.unnamed, *placement.in_words(order))


def _visible(placement: PlacedPrompt, before: Sequence[int]) -> tuple[str | int, ...]:
    """Return the parts for a model whose text attends only to the last picture before it.

    The earlier pictures to which the text refers are repeated before the text.
    """
    shown = (*before, *placement.unnamed)
    meant = [number for number in references(placement.pieces) if number in shown]
    again = [] if meant == list(shown[-1:]) else meant
    order = (*meant, *placement.named) if meant else (*shown, *placement.named)
    return (*placement.unnamed, *again, *placement.in_words(order))
