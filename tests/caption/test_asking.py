"""Asking: empty and repetitive replies, several questions, and too little memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from idefics_cli.caption.executors.asking import Asker
from idefics_cli.caption.executors.reading import Opened, PictureReader
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, CaptionQuestion
from idefics_cli.caption.wording import OnTruncate, Wording
from idefics_cli.core.errors import MemoryLimitError, PromptError
from idefics_cli.core.types import (
    Attachment,
    CaptionRecord,
    Completion,
    GenerationRequest,
    Sampling,
)
from idefics_cli.engine.protocol import Prepared
from tests.support.fakes import FakeEngine

LOOP = "a cat and " * 40


def job(**fields: Any) -> CaptionJob:
    pictures = tuple(CaptionItem(f"{n}.jpg", Attachment(f"{n}.jpg")) for n in "abcdefgh")
    made = CaptionJob(pictures, (CaptionQuestion("Describe it."),), batch_size=8)
    return replace(made, **fields)


def ask(job: CaptionJob, engine: FakeEngine) -> list[CaptionRecord]:
    with engine.serve(slots=job.batch_size) as session:
        return answered(Asker(session, job), opened(job, engine))


def answered(asker: Asker, pictures: Sequence[Opened]) -> list[CaptionRecord]:
    for picture in pictures:
        asker.add(picture)
    records = []
    while not asker.is_idle:
        asker.ask()
        records += asker.settle()
    return records


def opened(job: CaptionJob, engine: FakeEngine) -> list[Opened]:
    results = map(PictureReader(job, engine).read, job.pictures)
    return [result for result in results if isinstance(result, Opened)]


def name(request: GenerationRequest) -> str:
    return request.attachments[0].source.removesuffix(".jpg")


def first_says(text: str, *names: str) -> Callable[[GenerationRequest], str]:
    """Answer well, except to greedy requests about *names*."""

    def answer(request: GenerationRequest) -> str:
        is_bad = name(request) in names and request.sampling.temperature == 0
        return text if is_bad else f"a picture of {name(request)}"

    return answer


@pytest.mark.parametrize(
    ("text", "note"),
    [(LOOP, "the reply goes in circles"), ("", "the reply is empty"), (" .", "the reply is empty")],
)
def test_a_bad_reply_is_asked_for_once_more_and_the_others_do_not_wait(
    text: str, note: str
) -> None:
    engine = FakeEngine(first_says(text, "b", "c"))
    records = {record.file_name: record for record in ask(job(), engine)}

    assert list(records)[-2:] == ["b.jpg", "c.jpg"]
    assert {r.caption for r in records.values()} == {f"a picture of {n}" for n in "abcdefgh"}
    assert records["b.jpg"].notes == (f"asked again: {note}",)
    assert records["a.jpg"].notes == ()
    assert engine.batches == [8, 2]
    # The picture was in two batches, and gets its share of the seconds of each.
    assert records["b.jpg"].seconds == 0.75 / 8 + 0.75 / 2


def test_the_seed_of_the_second_try_depends_on_the_picture_and_the_run_alone() -> None:
    def seeds(
        names: str, *, temperature: float = 0.0, seed: int | None = None
    ) -> dict[str, int | None]:
        made = job(sampling=Sampling(temperature=temperature, seed=seed))
        chosen = tuple(p for p in made.pictures if p.key[0] in names)
        engine = FakeEngine(lambda request: LOOP)
        ask(replace(made, pictures=chosen), engine)
        return {name(r): r.sampling.seed for r in engine.requests[len(names) :]}

    together = seeds("abc")
    assert len(set(together.values())) == 3
    assert seeds("cb") == {n: together[n] for n in "cb"}
    assert seeds("a", seed=7)["a"] not in (None, together["a"])
    assert seeds("a", temperature=1.0, seed=7) == seeds("a", temperature=1.0, seed=7)


def test_a_reply_that_is_repetitive_twice_is_kept_with_a_note_and_an_empty_one_fails() -> None:
    def answer(request: GenerationRequest) -> str:
        return LOOP if name(request) == "a" else ""

    circles, empty, *_ = sorted(ask(job(), FakeEngine(answer)), key=lambda r: r.file_name)
    assert circles.caption == LOOP.strip()
    assert circles.notes == (
        "asked again: the reply goes in circles",
        "the reply goes in circles",
    )
    assert (empty.caption, empty.error) == (None, "the model gave no words")


def test_of_several_questions_the_one_without_an_answer_is_named() -> None:
    def answer(request: GenerationRequest) -> str:
        return "red" if request.messages[-1].parts[-1] == "Which colour?" else ""

    questions = (CaptionQuestion("Which colour?", "colour"), CaptionQuestion("How many?", "count"))
    record, *_ = ask(job(questions=questions), FakeEngine(answer))

    assert record.error == "the model gave no words for `count`"
    assert record.hint == "ask it with other words"


def test_a_job_may_take_every_reply_as_it_is() -> None:
    engine = FakeEngine(lambda request: LOOP)
    records = ask(job(asks_again=False), engine)
    assert {record.caption for record in records} == {LOOP.strip()}
    assert engine.batches == [8]


@pytest.mark.parametrize(
    ("on_truncate", "expected", "notes"),
    [
        ("keep", "one two. three", ()),
        ("trim", "one two.", ()),
        ("extend", "one two. three four five.", ("asked again: cut after 3 tokens",)),
    ],
)
def test_a_reply_that_was_cut_is_kept_or_trimmed_or_asked_for_at_more_length(
    on_truncate: OnTruncate, expected: str, notes: tuple[str, ...]
) -> None:
    engine = FakeEngine(lambda request: "one two. three four five.")
    made = job(sampling=Sampling(max_new_tokens=3), wording=Wording(on_truncate=on_truncate))

    (record, *_) = ask(made, engine)
    assert (record.caption, record.notes) == (expected, notes)
    assert record.finish == ("stop" if on_truncate == "extend" else "length")


def test_a_reply_that_is_too_long_for_the_extension_too_is_cut_there() -> None:
    engine = FakeEngine(lambda request: " ".join(map(str, range(99))))
    made = job(sampling=Sampling(max_new_tokens=3), wording=Wording(on_truncate="extend"))

    (record, *_) = ask(made, engine)
    assert (record.caption, record.finish) == (" ".join(map(str, range(12))), "length")


def test_the_wording_is_applied_to_every_answer() -> None:
    engine = FakeEngine("The image shows a cat.")
    engine = FakeEngine(lambda request: "The image shows a cat.")
    made = job(wording=Wording(prefix="sks, ", strip_preamble=True))

    assert {record.caption for record in ask(made, engine)} == {"sks, A cat."}


QUESTIONS = (
    CaptionQuestion("What is it?", "subject"),
    CaptionQuestion("How does it feel?", "mood"),
)


def answer_both(request: GenerationRequest) -> str:
    what = request.messages[0].text.split()[0]
    return f"{what} {name(request)}"


def test_several_questions_open_a_picture_once_and_give_one_record() -> None:
    engine = FakeEngine(answer_both)
    records = ask(job(questions=QUESTIONS), engine)

    assert len(engine.prepared) == 8
    assert [record.file_name[0] for record in records] == list("abcdefgh")
    assert records[1].answers == (("subject", "What b"), ("mood", "How b"))
    assert records[1].caption == "What b\nHow b"
    assert records[1].new_tokens == 6


def test_a_record_fails_when_one_of_its_questions_does() -> None:
    def check(requests: Sequence[GenerationRequest]) -> Exception | None:
        bad = any(name(r) == "c" and "feel" in r.messages[0].text for r in requests)
        return PromptError("too long") if bad else None

    records = ask(job(questions=QUESTIONS), FakeEngine(answer_both, completion_error=check))
    assert [r.file_name for r in records if r.error] == ["c.jpg"]
    assert all(len(r.answers) == 2 for r in records if not r.error)


def test_notes_of_several_questions_say_of_which() -> None:
    def answer(request: GenerationRequest) -> str:
        is_bad = "feel" in request.messages[0].text and request.sampling.temperature == 0
        return "" if is_bad else "fine"

    (record, *_) = ask(job(questions=QUESTIONS), FakeEngine(answer))
    assert record.notes == ("mood: asked again: the reply is empty",)
    assert record.answers == (("subject", "fine"), ("mood", "fine"))


def test_a_smaller_batch_is_told_in_the_rows_that_it_was_made_for() -> None:
    def check(requests: Sequence[GenerationRequest]) -> Exception | None:
        return MemoryLimitError("out of memory") if len(requests) > 2 else None

    made = job()
    engine = FakeEngine(name, completion_error=check)
    with engine.serve(slots=8) as session:
        asker, waiting = Asker(session, made), opened(made, engine)
        records = [*answered(asker, waiting[:6]), *answered(asker, waiting[6:])]
    assert [r.notes for r in records] == [
        *[("answered alone: out of memory",)] * 6,
        (),
        (),
    ]
    assert asker.pictures_at_a_time == 1
    assert engine.batches == [6, 3, *[1] * 6, 1, 1]


class Small(FakeEngine):
    """Has memory for four tiles at a time."""

    def complete(
        self, batch: Sequence[Prepared], *, cancel: threading.Event | None = None
    ) -> list[Completion]:
        tiles = sum(len(p.tile_sizes) for prepared in batch for p in prepared.pictures)
        if tiles > 4:
            raise MemoryLimitError("out of memory")
        return super().complete(batch, cancel=cancel)


def test_a_picture_that_does_not_fit_alone_is_answered_without_its_tiles() -> None:
    made = job()
    engine = Small(name, sizes={"c.jpg": (9000, 100)})
    with engine.serve(slots=8) as session:
        asker = Asker(session, made)
        records = {record.file_name[0]: record for record in answered(asker, opened(made, engine))}

    assert {key: record.caption for key, record in records.items()} == {n: n for n in "abcdefgh"}
    assert records.pop("c").notes == ("answered without tiles: out of memory",)
    assert {r.notes for r in records.values()} == {("answered 3 at a time: out of memory",)}
    # A picture that does not fit alone does not reduce the batch of the others.
    assert asker.pictures_at_a_time == 3
    assert engine.batches[:3] == [3, 3, 1]
