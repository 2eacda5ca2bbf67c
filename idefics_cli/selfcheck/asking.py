"""The manners in which an engine is asked: one by one, as a batch, served, mixed, in chats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType

from idefics_cli.core.types import (
    Attachment,
    Completion,
    GenerationRequest,
    Message,
    Sampling,
    TokenChunk,
)
from idefics_cli.engine.protocol import Engine, Outcome

# The longest right answer has 25 tokens, so this limit cuts only wrong answers.
_NEW_TOKENS = 48
_SLOTS = 4


@dataclass(frozen=True, slots=True)
class KnownPicture:
    """A picture, and a conversation about it in which every answer is known.

    Attributes:
        path: The file.
        turns: The questions with their right answers; the first asks for a caption.
    """

    path: Path
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class KnownRequest:
    """A request and its right reply."""

    request: GenerationRequest
    answer: str


Replies = list[Completion | Exception]
Manner = Callable[[Engine, Sequence[KnownRequest]], Replies]


def caption_requests(pictures: Sequence[KnownPicture]) -> list[KnownRequest]:
    """Return one request for each picture: its first turn."""
    return [_request_of(picture, 0) for picture in pictures]


def chat_requests(pictures: Sequence[KnownPicture]) -> list[KnownRequest]:
    """Return every turn of every picture, in order; each holds the turns before it."""
    return [
        _request_of(picture, turn) for picture in pictures for turn in range(len(picture.turns))
    ]


def ask_one_by_one(engine: Engine, asked: Sequence[KnownRequest]) -> Replies:
    """Ask for one reply after the other."""
    return [ask_as_batch(engine, [each])[0] for each in asked]


def ask_as_batch(engine: Engine, asked: Sequence[KnownRequest]) -> Replies:
    """Ask for all replies in one call."""
    return [*engine.complete([engine.prepare(each.request) for each in asked])]


def ask_session(engine: Engine, asked: Sequence[KnownRequest]) -> Replies:
    """Ask in a session with fewer slots than requests, so that rows come and go."""
    waiting = [engine.prepare(each.request) for each in asked]
    replies: dict[int, Outcome] = {}
    with engine.serve(slots=_SLOTS) as session:
        while len(replies) < len(asked):
            room = session.room
            if room > 0 and waiting:
                session.put_requests(waiting[:room])
                del waiting[:room]
            ended = session.get_outcome()
            if ended is None:
                break
            replies[ended[0]] = ended[1]
    lost = RuntimeError("the session gave no outcome")
    return [replies.get(number, lost) for number in range(len(asked))]


def ask_mixed(engine: Engine, asked: Sequence[KnownRequest]) -> Replies:
    """Submit all at once, every third one as interactive, with a stream of its text."""
    events: SimpleQueue[tuple[int, TokenChunk | Outcome]] = SimpleQueue()
    handles = []
    for number, each in enumerate(asked):
        is_interactive = number % 3 == 2
        handles.append(
            engine.submit(
                engine.prepare(each.request),
                lambda event, number=number: events.put((number, event)),
                urgency="interactive" if is_interactive else "batch",
                streams=is_interactive,
            )
        )
    streamed: dict[int, str] = {}
    replies: dict[int, Outcome] = {}
    try:
        while len(replies) < len(asked):
            number, event = events.get()
            if isinstance(event, TokenChunk):
                streamed[number] = streamed.get(number, "") + event.text
            else:
                replies[number] = _compared(event, streamed.get(number))
    finally:
        for handle in handles:
            handle.cancel()
    return [replies[number] for number in range(len(asked))]


MANNERS: Mapping[str, Manner] = MappingProxyType(
    {
        "one by one": ask_one_by_one,
        "batch": ask_as_batch,
        "session": ask_session,
        "mixed": ask_mixed,
    }
)
"""The manners for captions. Chats are asked one by one, turn after turn."""
CHAT = "chat"


def _request_of(picture: KnownPicture, turn: int) -> KnownRequest:
    messages: list[Message] = []
    for number, (question, answer) in enumerate(picture.turns[: turn + 1]):
        parts = (Attachment(str(picture.path)), question) if number == 0 else (question,)
        messages.append(Message("user", parts))
        if number < turn:
            messages.append(Message("assistant", (answer,)))
    request = GenerationRequest(tuple(messages), Sampling(max_new_tokens=_NEW_TOKENS))
    return KnownRequest(request, picture.turns[turn][1])


def _compared(outcome: Outcome, streamed: str | None) -> Outcome:
    if streamed is None or not isinstance(outcome, Completion) or outcome.text == streamed:
        return outcome
    return RuntimeError(f"the stream gave {streamed!r}, and the reply is {outcome.text!r}")
