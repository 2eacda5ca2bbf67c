"""The questions about a few pictures, from their first batch to a record for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event

from idefics_cli.caption.guard import is_degenerate
from idefics_cli.caption.job import CaptionJob, Question, with_content_seed
from idefics_cli.caption.reading import Opened
from idefics_cli.caption.records import Reply, captioned, failed
from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import CaptionRecord, Finish, Sampling
from idefics_cli.engine import Engine, Prepared
from idefics_cli.engine.batching import Answer, Batcher

# A reply in circles is drawn again with some chance in it.
_RETRY_TEMPERATURE = 0.7
_RETRY_TOP_P = 0.9
# `--on-truncate extend`: how much longer the second reply may be.
_EXTENSION = 4


class Asker:
    """Asks the questions of a job about pictures that are open.

    All questions about a picture are answered in one go, and it has one record: a failure, if
    any of them fails. A reply that is empty or goes in circles is asked for once more, with a
    seed that depends on the picture and the run; one that was cut too, if the wording says so.

    Args:
        engine: What answers; the caller closes it.
        job: What is asked.
        cancel: Setting it ends what is being answered.
    """

    def __init__(self, engine: Engine, job: CaptionJob, cancel: Event) -> None:
        self._job = job
        self._cancel = cancel
        self._batcher = Batcher(engine, job.batch_size)

    @property
    def pictures_at_a_time(self) -> int:
        """How many pictures to ask about together: fewer since the memory ran out."""
        return max(1, self._batcher.size // len(self._job.questions))

    def ask(self, batch: Sequence[Opened]) -> Iterator[CaptionRecord]:
        """Yield the record of each picture of *batch*, as it gets done."""
        waiting = {opened: self._turns(opened) for opened in batch}
        self._answer([turn for turns in waiting.values() for turn in turns])
        while waiting:
            again = []
            for opened, turns in list(waiting.items()):
                if unsettled := [turn for turn in turns if self._asks_again(turn)]:
                    again += unsettled
                else:
                    yield self._record(opened, waiting.pop(opened))
            self._answer(again)

    def _turns(self, opened: Opened) -> list[_Turn]:
        questions = zip(self._job.questions, opened.prepared, strict=True)
        return [_Turn(question, prepared) for question, prepared in questions]

    def _answer(self, turns: Sequence[_Turn]) -> None:
        answers = self._batcher.answer([turn.prepared for turn in turns], cancel=self._cancel)
        for turn, answer in zip(turns, answers, strict=True):
            turn.take(answer)

    def _asks_again(self, turn: _Turn) -> bool:
        """Make *turn* ready to be asked once more, if its reply is not good enough."""
        if isinstance(turn.answer, Exception):
            return False
        completion = turn.answer.completion
        if completion.finish == "cancelled":
            return False
        if (reason := is_degenerate(completion.text)) and not turn.was_retried:
            turn.retry(f"asked again: the reply {reason}")
            return True
        extends = self._job.wording.on_truncate == "extend" and not turn.was_extended
        if completion.finish == "length" and extends:
            turn.extend()
            return True
        return False

    def _record(self, opened: Opened, turns: Sequence[_Turn]) -> CaptionRecord:
        key = opened.picture.key
        replies, notes = [], []
        for turn in turns:
            if isinstance(turn.answer, Exception):
                return _described(failed(key, turn.answer), opened)
            text = turn.answer.completion.text
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


@dataclass(slots=True)
class _Turn:
    """One question about one picture, and what came of it."""

    question: Question
    prepared: Prepared
    answer: Answer | Exception = field(init=False)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    was_retried: bool = False
    was_extended: bool = False

    def take(self, answer: Answer | Exception) -> None:
        self.answer = answer
        if isinstance(answer, Answer):
            self.seconds += answer.seconds
            if answer.note:
                self.note(answer.note)

    def note(self, text: str) -> None:
        name = self.question.name
        text = f"{name}: {text}" if name else text
        if text not in self.notes:
            self.notes.append(text)

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
        self.prepared = replace(self.prepared, request=request)

    def reply(self, wording: Callable[[str, Finish], str]) -> Reply:
        if isinstance(self.answer, Exception):
            raise TypeError("there is no reply")
        completion = self.answer.completion
        text = wording(completion.text, completion.finish)
        name = self.question.name
        return Reply(name, text, completion.finish, completion.new_tokens, self.seconds)


def _described(record: CaptionRecord, opened: Opened) -> CaptionRecord:
    return replace(record, sha256=opened.content.sha256, stamp=opened.content.stamp)
