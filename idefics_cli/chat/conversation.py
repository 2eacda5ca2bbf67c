"""A conversation as a value: turns, pictures, settings, and the request that they make."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from idefics_cli.core.errors import UsageError
from idefics_cli.core.types import (
    Attachment,
    Finish,
    GenerationRequest,
    Message,
    Part,
    Sampling,
)

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class ChatPicture:
    """A picture of a conversation.

    Attributes:
        number: From 1, in order of appearance; what `[1]` in a text refers to.
        source: How the user named it, for people.
        attachment: Where its bytes are now, and their digest.
        width: Pixels, as seen by a person; 0 when unknown.
        height: As *width*.
        is_dropped: It was taken out of the prompt.
        is_missing: Its bytes are nowhere to be found, so it is out of the prompt as well.
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
        """Whether the model is shown it, if it is shown the turn."""
        return not (self.is_dropped or self.is_missing)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, and how it came about.

    Attributes:
        text: All of it, or what there was when it was interrupted.
        finish: `cancelled` for an interrupted reply.
        model: The name of the model that gave it.
        sampling: How its tokens were chosen.
        prompt_tokens: Of the request.
        reused_tokens: Of those, how many came from the cache.
        new_tokens: Of the reply.
        seconds: From request to last token.
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
    """A question with its pictures, and the reply when there is one.

    Attributes:
        text: What the user wrote, to the letter.
        pictures: Those that came with it, in order; they precede the text.
        reply: None while the model answers.
        former: While a reply is made anew, the one that stands if that comes to nothing.
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
        name: Given by the user, if any.
        system: The instruction that precedes the conversation.
        settings: What was set for this conversation, by name.
        turns: In order; only the last may be without a reply.
        forgotten: So many of the oldest turns are on record and out of the prompt.
    """

    model: str
    name: str | None = None
    system: str | None = None
    settings: Mapping[str, Value] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()
    forgotten: int = 0

    @property
    def pending(self) -> Turn | None:
        """The turn that waits for its reply, if there is one."""
        last = self.turns[-1] if self.turns else None
        return last if last is not None and last.reply is None else None

    @property
    def pictures(self) -> tuple[ChatPicture, ...]:
        """Every picture, by number; dropped ones too."""
        return tuple(picture for turn in self.turns for picture in turn.pictures)

    @property
    def pictures_in_prompt(self) -> tuple[ChatPicture, ...]:
        """The pictures that the model is shown, in order."""
        turns = self.turns[self.forgotten :]
        return tuple(p for turn in turns for p in turn.pictures if p.is_in_prompt)

    @property
    def missing(self) -> tuple[ChatPicture, ...]:
        """The pictures that would be in the prompt if they could be found."""
        return tuple(p for p in self.pictures if p.is_missing and not p.is_dropped)

    @property
    def title(self) -> str:
        """The name, or the first question on one line; "" when there is neither."""
        return self.name or (" ".join(self.turns[0].text.split()) if self.turns else "")

    def asked(self, text: str, pictures: Sequence[ChatPicture] = ()) -> Conversation:
        """Return it with a question added; *pictures* get the next numbers.

        Raises:
            ValueError: If a turn is pending.
        """
        self._require(pending=False)
        # A number is free again only when the turn that brought it is gone: a text that stays
        # may refer to it.
        first = len(self.pictures) + 1
        numbered = tuple(replace(p, number=first + i) for i, p in enumerate(pictures))
        return replace(self, turns=(*self.turns, Turn(text, numbered)))

    def replied(self, reply: Reply) -> Conversation:
        """Return it with the pending turn answered.

        Raises:
            ValueError: If no turn is pending.
        """
        self._require(pending=True)
        return self._with_last(replace(self.turns[-1], reply=reply, former=None))

    def retried(self) -> Conversation:
        """Return it with the last turn pending again; its reply stands until there is another.

        Raises:
            UsageError: If there is no turn.
            ValueError: If one is pending.
        """
        self._require(pending=False)
        last = self._last("retry")
        return self._with_last(replace(last, reply=None, former=last.reply))

    def rolled_back(self) -> Conversation:
        """Return it without the pending turn, or with the reply that it had before.

        Raises:
            ValueError: If no turn is pending.
        """
        self._require(pending=True)
        last = self.turns[-1]
        if last.former is None:
            return self._cut(len(self.turns) - 1)
        return self._with_last(replace(last, reply=last.former, former=None))

    def undone(self) -> Conversation:
        """Return it without the last turn, question and reply.

        Raises:
            UsageError: If there is no turn.
        """
        self._last("undo")
        return self._cut(len(self.turns) - 1)

    def edited(self, number: int) -> Conversation:
        """Return it without turn *number*, from 1, and all that follow: it is asked anew.

        Raises:
            UsageError: If there is no such turn.
        """
        if not 1 <= number <= len(self.turns):
            raise UsageError(
                f"there is no turn {number}", hint=_range_hint("turns", len(self.turns))
            )
        return self._cut(number - 1)

    def dropped(self, number: int) -> Conversation:
        """Return it with picture *number* out of the prompt; the text of its turn stays.

        Raises:
            UsageError: If there is no such picture, or it is dropped already.
        """
        pictures = self.pictures
        if not 1 <= number <= len(pictures):
            hint = _range_hint("pictures", len(pictures))
            raise UsageError(f"there is no picture {number}", hint=hint)
        if pictures[number - 1].is_dropped:
            raise UsageError(f"picture {number} is dropped already")
        return self._with_pictures(
            lambda p: replace(p, is_dropped=True) if p.number == number else p
        )

    def without_oldest(self, count: int) -> Conversation:
        """Return it with *count* more of the oldest turns on record only, out of the prompt.

        Raises:
            UsageError: If that leaves no turn; `cleared` is meant then.
        """
        forgotten = self.forgotten + count
        if count < 1 or forgotten >= len(self.turns):
            left = len(self.turns) - self.forgotten
            raise UsageError(f"cannot forget {count} of {left} turns")
        return replace(self, forgotten=forgotten)

    def cleared(self) -> Conversation:
        """Return it without turns; name, model, system text and settings stay."""
        return self._cut(0)

    def changed(self, **fields: str | None) -> Conversation:
        """Return it with another `model`, `name` or `system`."""
        unknown = fields.keys() - {"model", "name", "system"}
        if unknown or fields.get("model", "") is None:
            raise ValueError(f"cannot change {fields}")
        return replace(self, **fields)  # type: ignore[arg-type]  # checked above

    def with_setting(self, key: str, value: Value) -> Conversation:
        """Return it with the setting *key*; None takes it away."""
        others = {k: v for k, v in self.settings.items() if k != key}
        return replace(self, settings=others if value is None else {**others, key: value})

    def with_missing(self, digests: frozenset[str]) -> Conversation:
        """Return it with the pictures of *digests*, and no others, marked as missing."""
        return self._with_pictures(lambda p: replace(p, is_missing=p.digest in digests))

    def unknown_references(self, text: str) -> tuple[int, ...]:
        """Return the numbers of `[1]`, `[2]`… in *text* that are no picture in the prompt."""
        known = {picture.number for picture in self.pictures_in_prompt}
        return tuple(n for n in references(text) if n not in known)

    def request(self, sampling: Sampling, *, sees_last_only: bool = False) -> GenerationRequest:
        """Return what the model is asked now.

        `[1]` is written as "the first image", counted among the pictures in the prompt up to
        there: so a later picture does not change an earlier turn, whose cache stays of use.

        Args:
            sampling: How to answer.
            sees_last_only: The model sees only the last picture before a text, as IDEFICS-1:
                the pictures that a text refers to are put before it once more.

        Raises:
            ValueError: If no turn is pending.
        """
        self._require(pending=True)
        messages = [Message("system", (self.system,))] if self.system else []
        shown: list[ChatPicture] = []
        for turn in self.turns[self.forgotten :]:
            new = [picture for picture in turn.pictures if picture.is_in_prompt]
            shown += new
            meant = _meant(turn.text, shown) if sees_last_only else []
            again = [] if meant == shown[-1:] else meant
            parts: list[Part] = [picture.attachment for picture in (*new, *again)]
            messages.append(Message("user", (*parts, _for_model(turn.text, meant or shown))))
            # A silent example, of a reply that was stopped before its first word, would teach
            # the model silence.
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


# Not `a[1]`, which is code, nor `[1](address)`, which is a link. A word for a picture before it
# is part of the reference: "in picture [1]" becomes "in the first picture".
_REFERENCE = re.compile(
    r"(?:\b(?:the\s+)?(?P<noun>image|picture|photo)\s+)?(?<![\w\])])\[(?P<number>[1-9]\d{0,2})\]"
    r"(?![\[(\w])",
    re.IGNORECASE,
)
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
)  # fmt: skip


def references(text: str) -> tuple[int, ...]:
    """Return the numbers of the pictures that *text* refers to, each once, in order."""
    return tuple(dict.fromkeys(int(match["number"]) for match in _REFERENCE.finditer(text)))


def _range_hint(things: str, count: int) -> str:
    return f"there are {count} {things}, from 1" if count else f"there are no {things} yet"


def _for_model(text: str, shown: Sequence[ChatPicture]) -> str:
    """Return *text* with each `[1]` in words; a number that is not *shown* stays as it is."""
    places = {picture.number: place for place, picture in enumerate(shown)}

    def in_words(match: re.Match[str]) -> str:
        place = places.get(int(match["number"]))
        if place is None:
            return match[0]
        which = "the" if len(shown) == 1 else f"the {_ordinal(place)}"
        words = f"{which} {(match['noun'] or 'image').lower()}"
        is_start = not text[: match.start()].strip()
        return words[0].upper() + words[1:] if is_start else words

    return _REFERENCE.sub(in_words, text)


def _ordinal(place: int) -> str:
    if place < len(_ORDINALS):
        return _ORDINALS[place]
    number = place + 1
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ending}"


def _meant(text: str, shown: Sequence[ChatPicture]) -> list[ChatPicture]:
    by_number = {picture.number: picture for picture in shown}
    return [by_number[number] for number in references(text) if number in by_number]
