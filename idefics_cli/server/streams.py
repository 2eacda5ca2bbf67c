"""Streams: the events of the engine become the events of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.core.logprobs import TokenLogprob
from idefics_cli.core.types import Completion, TokenChunk
from idefics_cli.engine.protocol import Outcome
from idefics_cli.server.errors import shutting_down
from idefics_cli.server.event_queue import Event
from idefics_cli.server.replies import ReplyShape


class ReplyStream:
    """Makes the events of the replies to one request. It sends nothing.

    Args:
        shape: The shape of the events.
        count: Number of replies.
    """

    def __init__(self, shape: ReplyShape, count: int) -> None:
        self._shape = shape
        self._count = count
        self._written = [0] * count
        self._told_logprobs = [0] * count
        self._offsets = [0] * count
        self._has_role = [False] * count
        self._outcomes: dict[int, Completion] = {}
        self.has_text = False
        """Whether there was a text that is not empty."""
        self.error: Exception | None = None
        """Why the stream ends early; None if no reply failed."""

    @property
    def outcomes(self) -> list[Completion]:
        """The replies that have ended, in order."""
        return [self._outcomes[index] for index in sorted(self._outcomes)]

    @property
    def is_ended(self) -> bool:
        """Whether all replies have ended."""
        return len(self._outcomes) == self._count

    def silence(self) -> bytes:
        """Return the event of a long wait: all clients accept it, and proxies see it."""
        index = next(i for i in range(self._count) if i not in self._outcomes)
        return self._role(index) or self._shape.silence(index)

    def feed(self, events: Sequence[Event]) -> bytes:
        """Return what is written for *events*; texts that came together are one event.

        If a reply failed, `error` is set, and what came before it is written.
        """
        pieces: dict[int, str] = {}
        logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
        ended: dict[int, Completion] = {}
        for number, (index, one) in enumerate(events):
            self.error = _failure(one)
            if self.error is not None:
                events = events[:number]
                break
            if isinstance(one, TokenChunk):
                pieces[index] = pieces.get(index, "") + one.text
                logprobs[index] = (*logprobs.get(index, ()), *one.logprobs)
            elif isinstance(one, Completion):
                ended[index] = one
        self._outcomes |= ended
        indexes = dict.fromkeys(index for index, _ in events)
        return b"".join(
            self._role(index)
            + self._piece(index, pieces.get(index, ""), logprobs.get(index, ()), ended.get(index))
            + (self._shape.finish(index, ended[index].finish) if index in ended else b"")
            for index in indexes
        )

    def end(self) -> bytes:
        """Return the end of the stream."""
        return self._shape.end(self.outcomes)

    def _role(self, index: int) -> bytes:
        if self._has_role[index]:
            return b""
        self._has_role[index] = True
        return self._shape.role(index)

    def _piece(
        self,
        index: int,
        text: str,
        logprobs: tuple[TokenLogprob, ...],
        outcome: Completion | None,
    ) -> bytes:
        if outcome is not None:
            # The likeliest of some answers has no text before its end.
            text = outcome.text[self._written[index] :]
            logprobs = outcome.logprobs[self._told_logprobs[index] :]
        offset = self._offsets[index]
        self._written[index] += len(text)
        self._told_logprobs[index] += len(logprobs)
        self._offsets[index] += sum(len(each.text) for each in logprobs)
        self.has_text = self.has_text or bool(text)
        return self._shape.piece(index, text, logprobs, offset) if text or logprobs else b""


def _failure(event: TokenChunk | Outcome) -> Exception | None:
    if isinstance(event, Exception):
        return event
    is_cut = isinstance(event, Completion) and _is_cut(event)
    return shutting_down() if is_cut else None


def check_ended(outcomes: Sequence[Completion]) -> None:
    """Check that no reply was cut off by the end of the server.

    Raises:
        ApiError: If one was: nobody else cancels a reply while its client is there.
    """
    if any(map(_is_cut, outcomes)):
        raise shutting_down()


def _is_cut(outcome: Completion) -> bool:
    return outcome.finish == "cancelled"
