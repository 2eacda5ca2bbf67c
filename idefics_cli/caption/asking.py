"""The questions about a few pictures, from their first batch to a record for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Event

from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.reading import Opened
from idefics_cli.caption.records import Reply, captioned, failed
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine import Engine
from idefics_cli.engine.batching import Answer, Batcher


class Asker:
    """Asks the questions of a job about pictures that are open.

    All questions about a picture are answered in one go, and it has one record: a failure, if
    any of them fails.

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
        """Yield the record of each picture of *batch*."""
        prepared = [each for opened in batch for each in opened.prepared]
        answers = iter(self._batcher.answer(prepared, cancel=self._cancel))
        for opened in batch:
            yield self._record(opened, [next(answers) for _ in opened.prepared])

    def _record(self, opened: Opened, answers: Sequence[Answer | Exception]) -> CaptionRecord:
        replies = []
        for question, answer in zip(self._job.questions, answers, strict=True):
            if isinstance(answer, Exception):
                return _described(failed(opened.picture.key, answer), opened)
            replies.append(_reply(question.name, answer))
        return _described(captioned(opened.picture.key, opened.first, replies), opened)


def _reply(name: str, answer: Answer) -> Reply:
    completion = answer.completion
    text = completion.text.strip()
    return Reply(name, text, completion.finish, completion.new_tokens, answer.seconds)


def _described(record: CaptionRecord, opened: Opened) -> CaptionRecord:
    return replace(record, sha256=opened.content.sha256, stamp=opened.content.stamp)
