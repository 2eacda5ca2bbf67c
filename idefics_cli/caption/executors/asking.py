"""The questions about pictures, from the first to a record of each picture."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from idefics_cli.caption.executors.degenerate import is_degenerate
from idefics_cli.caption.executors.reading import Opened
from idefics_cli.caption.job import CaptionJob, CaptionQuestion, with_content_seed
from idefics_cli.caption.records import CaptionReply, captioned, failed
from idefics_cli.core.errors import MemoryLimitError, ModelError
from idefics_cli.core.types import CaptionRecord, Completion, Finish, Sampling
from idefics_cli.engine.protocol import Outcome, Prepared, Session

# A reply in circles is drawn again with some chance in it.
_RETRY_TEMPERATURE = 0.7
_RETRY_TOP_P = 0.9
# `--on-truncate extend`: how much longer the second reply may be.
_EXTENSION = 4


class Asker:
    """Asks the questions of a job about pictures that are open.

    A picture has its record when the last of its questions is answered, whatever others wait
    for: a failure, if any of them fails. A reply that is empty or goes in circles is asked for
    once more, with a seed that depends on the picture and the run; one that was cut too, if the
    wording says so. What does not fit into the memory alone is tried without its tiles.

    Args:
        session: Answers; the caller closes it.
        job: What is asked.
    """

    def __init__(self, session: Session, job: CaptionJob) -> None:
        self._session = session
        self._job = job
        self._waiting: deque[_Turn] = deque()
        self._asked: dict[int, _Turn] = {}
        self._turns: dict[Opened, list[_Turn]] = {}
        self._numbers = 0

    @property
    def pictures_at_a_time(self) -> int:
        """How many pictures to ask about together: fewer since the memory ran out."""
        return max(1, self._session.slots // len(self._job.questions))

    @property
    def has_room(self) -> bool:
        """Whether a question about another picture could be asked now."""
        return self._session.room > len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked or is to be."""
        return not self._waiting and not self._asked

    def add(self, opened: Opened) -> None:
        """Let the questions about a picture be asked, after those that are to be."""
        questions = zip(self._job.questions, opened.prepared, strict=True)
        turns = [_Turn(question, prepared, opened) for question, prepared in questions]
        self._turns[opened] = turns
        self._waiting += turns

    def ask(self) -> None:
        """Ask as much of what is to be asked as there is room for, together."""
        count = min(self._session.room, len(self._waiting))
        if not count:
            return
        turns = [self._waiting.popleft() for _ in range(count)]
        self._asked |= enumerate(turns, start=self._numbers)
        self._numbers += count
        self._session.put_requests([turn.prepared for turn in turns])

    def settle(self, timeout_seconds: float | None = None) -> list[CaptionRecord]:
        """Wait for an answer, and return the records of the pictures that have all theirs now.

        Args:
            timeout_seconds: How long to wait; None is until there is an answer.
        """
        records, again = [], []
        found = self._session.get_outcome(timeout_seconds)
        while found is not None:
            index, outcome = found
            turn = self._asked.pop(index)
            turn.take(outcome)
            if self._asks_again(turn):
                again.append(turn)
            elif all(other.outcome is not None for other in self._turns[turn.opened]):
                records.append(self._record(turn.opened, self._turns.pop(turn.opened)))
            found = self._session.get_outcome(0)
        # First of all: nothing else holds up the pictures that were listed after theirs.
        self._waiting.extendleft(reversed(again))
        return records

    def _asks_again(self, turn: _Turn) -> bool:
        """Make *turn* ready to be asked once more, if its reply is not good enough."""
        outcome = turn.outcome
        if isinstance(outcome, MemoryLimitError):
            return turn.shrink()
        if not isinstance(outcome, Completion) or outcome.finish == "cancelled":
            return False
        reason = is_degenerate(outcome.text) if self._job.asks_again else None
        if reason and not turn.was_retried:
            turn.retry(f"asked again: the reply {reason}")
            return True
        extends = self._job.wording.on_truncate == "extend" and not turn.was_extended
        if outcome.finish == "length" and extends:
            turn.extend()
            return True
        return False

    def _record(self, opened: Opened, turns: Sequence[_Turn]) -> CaptionRecord:
        key = opened.picture.key
        replies, notes = [], []
        for turn in turns:
            if isinstance(turn.outcome, Exception):
                return _described(failed(key, turn.outcome), opened)
            text = turn.completion.text
            reason = is_degenerate(text)
            if reason == "is empty":
                error = ModelError("the model has no words for it", hint="try another `--prompt`")
                return _described(failed(key, error), opened)
            if reason:
                turn.note(f"the reply {reason}")
            replies.append(turn.reply(self._job.wording.finish))
            notes += turn.notes
        record = captioned(key, opened.first, replies, notes=tuple(notes))
        return _described(record, opened)


@dataclass(slots=True, eq=False)
class _Turn:
    """One question about one picture, and what came of it."""

    question: CaptionQuestion
    prepared: Prepared
    opened: Opened
    outcome: Outcome | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    was_retried: bool = False
    was_extended: bool = False

    @property
    def completion(self) -> Completion:
        if not isinstance(self.outcome, Completion):
            raise TypeError("there is no reply")
        return self.outcome

    def take(self, outcome: Outcome) -> None:
        self.outcome = outcome
        if isinstance(outcome, Completion):
            self.seconds += outcome.prefill_seconds + outcome.decode_seconds
            if (count := outcome.at_a_time) is not None:
                how = "alone" if count == 1 else f"{count} at a time"
                self.note(f"answered {how}: out of memory")

    def note(self, text: str) -> None:
        name = self.question.name
        text = f"{name}: {text}" if name else text
        if text not in self.notes:
            self.notes.append(text)

    def shrink(self) -> bool:
        """Ask with less of the pictures; False if there is no less."""
        pictures = tuple(picture.without_tiles() for picture in self.prepared.pictures)
        if pictures == self.prepared.pictures:
            return False
        self.note("answered without tiles: out of memory")
        self.outcome = None
        self.prepared = replace(self.prepared, pictures=pictures)
        return True

    def retry(self, note: str) -> None:
        self.was_retried = True
        self.note(note)
        sampling = self.prepared.request.sampling
        sampling = replace(
            sampling,
            temperature=max(sampling.temperature, _RETRY_TEMPERATURE),
            top_p=min(sampling.top_p, _RETRY_TOP_P),
            # Another than that of the first reply, if it had one.
            seed=((sampling.seed or 0) + 1) % 2**63,
        )
        self._ask(sampling)
        self.prepared = with_content_seed(self.prepared)

    def extend(self) -> None:
        self.was_extended = True
        sampling = self.prepared.request.sampling
        limit = sampling.max_new_tokens
        self.note(f"asked again: cut after {limit} tokens")
        self._ask(replace(sampling, max_new_tokens=limit * _EXTENSION))

    def _ask(self, sampling: Sampling) -> None:
        request = replace(self.prepared.request, sampling=sampling)
        self.outcome = None
        self.prepared = replace(self.prepared, request=request)

    def reply(self, wording: Callable[[str, Finish], str]) -> CaptionReply:
        completion = self.completion
        text = wording(completion.text, completion.finish)
        name = self.question.name
        return CaptionReply(name, text, completion.finish, completion.new_tokens, self.seconds)


def _described(record: CaptionRecord, opened: Opened) -> CaptionRecord:
    return replace(record, sha256=opened.content.sha256, stamp=opened.content.stamp)
