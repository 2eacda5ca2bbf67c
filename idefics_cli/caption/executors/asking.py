"""The asker: it sends the questions about pictures to a session, and returns their records."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from idefics_cli.caption.executors.degenerate import degeneracy, formed_degeneracy
from idefics_cli.caption.executors.reading import Opened
from idefics_cli.caption.job import CaptionJob, CaptionQuestion, with_content_seed
from idefics_cli.caption.records import CaptionReply, captioned, failed
from idefics_cli.caption.wording import Wording
from idefics_cli.core.errors import MemoryLimitError, ModelError
from idefics_cli.core.types import CaptionRecord, Completion, Sampling
from idefics_cli.core.units import counted
from idefics_cli.engine.protocol import Outcome, Prepared, Session
from idefics_cli.engine.schema.form import ReplyForm

# A repetitive reply is sampled again, at this temperature or above.
_RETRY_TEMPERATURE = 0.7
_RETRY_TOP_P = 0.9
# With `--on-truncate extend`, the second reply may be this many times as long.
_EXTENSION = 4


class Asker:
    """Asks the questions of a job about opened pictures.

    A picture gets its record when all of its questions are answered. If one of them fails, the
    record is a failure. A question is asked again in three cases:

    - The reply is empty or repetitive. It is sampled once more, with a seed that depends on the
      picture and the run.
    - The reply was cut off, and `on_truncate` is "extend". It may then be longer.
    - The request does not fit into the memory even alone. It is then tried without tiles.

    Args:
        session: Answers the requests; the caller closes it.
        job: The job, with its questions.
    """

    def __init__(self, session: Session, job: CaptionJob) -> None:
        self._session = session
        self._job = job
        self._questions = job.asked
        self._waiting: deque[_Turn] = deque()
        self._asked: dict[int, _Turn] = {}
        self._turns: dict[Opened, list[_Turn]] = {}
        self._sent = 0

    @property
    def requests_at_a_time(self) -> int:
        """Largest number of requests at a time; smaller after the memory ran out."""
        return self._session.slots

    @property
    def pictures_at_a_time(self) -> int:
        """Largest number of pictures at a time, at least 1."""
        return max(1, self.requests_at_a_time // len(self._questions))

    @property
    def has_room(self) -> bool:
        """Whether the session has room for a question about another picture."""
        return self._session.room > len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether no question waits for the session or for its answer."""
        return not self._waiting and not self._asked

    def add(self, opened: Opened) -> None:
        """Add the questions about a picture at the end of the queue."""
        questions = zip(self._questions, opened.prepared, strict=True)
        turns = [_Turn(question, prepared, opened) for question, prepared in questions]
        self._turns[opened] = turns
        self._waiting += turns

    def ask(self) -> None:
        """Send as many of the waiting questions as the session has room for, in one call."""
        count = min(self._session.room, len(self._waiting))
        if not count:
            return
        turns = [self._waiting.popleft() for _ in range(count)]
        self._asked |= enumerate(turns, start=self._sent)
        self._sent += count
        self._session.put_requests([turn.prepared for turn in turns])

    def settle(self, timeout_seconds: float | None = None) -> list[CaptionRecord]:
        """Wait for an answer, and return the records of the pictures that are complete now.

        Args:
            timeout_seconds: How long to wait; None waits until there is an answer.
        """
        records, again = [], []
        found = self._session.get_outcome(timeout_seconds)
        while found is not None:
            index, outcome = found
            turn = self._asked.pop(index)
            turn.receive(outcome)
            if self._asks_again(turn):
                again.append(turn)
            elif all(other.outcome is not None for other in self._turns[turn.opened]):
                records.append(self._record(turn.opened, self._turns.pop(turn.opened)))
            found = self._session.get_outcome(0)
        # The questions in *again* go to the front of the queue, because the records of all later
        # pictures wait until these questions are answered.
        self._waiting.extendleft(reversed(again))
        return records

    def _asks_again(self, turn: _Turn) -> bool:
        """Prepare *turn* for another request if its outcome is not good enough, and return True."""
        outcome = turn.outcome
        if isinstance(outcome, MemoryLimitError):
            return turn.drop_tiles()
        if not isinstance(outcome, Completion) or outcome.finish == "cancelled":
            return False
        reason = self._fault(outcome) if self._job.asks_again else None
        if reason and not turn.was_retried:
            turn.sample_again(f"asked again: the reply {reason}")
            return True
        extends = self._job.wording.on_truncate == "extend" and not turn.was_extended
        if outcome.finish == "length" and extends:
            turn.extend_limit()
            return True
        return False

    def _fault(self, reply: Completion) -> str | None:
        """Return why *reply* cannot be a caption; None if it can, or the job takes any reply."""
        if self._job.takes_any_reply:
            return None
        return degeneracy(reply.text) if self._job.form is None else formed_degeneracy(reply.text)

    def _record(self, opened: Opened, turns: Sequence[_Turn]) -> CaptionRecord:
        key = opened.picture.key
        replies, notes = [], []
        for turn in turns:
            if isinstance(turn.outcome, Exception):
                return _with_content(failed(key, turn.outcome), opened)
            form = opened.form or self._job.form
            if form and (error := form.error_of(turn.completion)) is not None:
                return _with_content(failed(key, error), opened)
            reason = self._fault(turn.completion)
            if reason == "is empty":
                return _with_content(failed(key, _no_words(turn.question)), opened)
            if reason:
                turn.note(f"the reply {reason}")
            replies.append(turn.reply(form, self._job.wording))
            notes += turn.notes
        examples = sum(len(shot.pictures) for shot in self._job.shots)
        record = captioned(key, opened.first, replies, notes=tuple(notes), examples=examples)
        return _with_content(record, opened)


def _no_words(question: CaptionQuestion) -> ModelError:
    if not question.name:
        return ModelError("the model gave no words", hint="try another `--prompt`")
    return ModelError(
        f"the model gave no words for `{question.name}`", hint="ask it with other words"
    )


@dataclass(slots=True, eq=False)
class _Turn:
    """One question about one picture, with its outcome."""

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
            raise TypeError("the turn has no reply")
        return self.outcome

    def receive(self, outcome: Outcome) -> None:
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

    def drop_tiles(self) -> bool:
        """Replace the request by one without tiles; return False if its pictures have no tiles."""
        pictures = tuple(picture.without_tiles() for picture in self.prepared.pictures)
        if pictures == self.prepared.pictures:
            return False
        self.note("answered without tiles: out of memory")
        self.outcome = None
        self.prepared = replace(self.prepared, pictures=pictures)
        return True

    def sample_again(self, note: str) -> None:
        self.was_retried = True
        self.note(note)
        sampling = self.prepared.request.sampling
        sampling = replace(
            sampling,
            temperature=max(sampling.temperature, _RETRY_TEMPERATURE),
            top_p=min(sampling.top_p, _RETRY_TOP_P),
            # The seed of the first reply would give the same reply, so the next seed is used.
            seed=((sampling.seed or 0) + 1) % 2**63,
        )
        self._replace_sampling(sampling)
        self.prepared = with_content_seed(self.prepared)

    def extend_limit(self) -> None:
        self.was_extended = True
        sampling = self.prepared.request.sampling
        limit = sampling.max_new_tokens
        self.note(f"asked again: cut after {counted(limit, 'token')}")
        self._replace_sampling(replace(sampling, max_new_tokens=limit * _EXTENSION))

    def _replace_sampling(self, sampling: Sampling) -> None:
        request = replace(self.prepared.request, sampling=sampling)
        self.outcome = None
        self.prepared = replace(self.prepared, request=request)

    def reply(self, form: ReplyForm | None, wording: Wording) -> CaptionReply:
        completion = self.completion
        text = form.text_of(completion) if form else completion.text
        text = wording.finish(text, completion.finish)
        name = self.question.name
        return CaptionReply(
            name,
            text,
            completion.finish,
            completion.new_tokens,
            self.seconds,
            completion.prompt_tokens,
        )


def _with_content(record: CaptionRecord, opened: Opened) -> CaptionRecord:
    return replace(record, sha256=opened.content.sha256, stamp=opened.content.stamp)
