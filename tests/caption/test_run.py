"""A captioning run is a library call that needs no terminal."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from idefics_cli.caption.events import (
    BatchLimited,
    BatchReduced,
    ModelLoading,
    Ready,
    Reporting,
    Resumed,
    RunEnded,
    RunEvent,
    Started,
)
from idefics_cli.caption.inputs.discover import discover
from idefics_cli.caption.job import CaptionJob, CaptionQuestion
from idefics_cli.caption.outcome import RunOutcome
from idefics_cli.caption.output import CaptionOutput
from idefics_cli.caption.resume.todo import Todo
from idefics_cli.caption.run import caption_pictures, left_to_do
from idefics_cli.caption.runner import run_captions
from idefics_cli.core.errors import ImageError, MemoryLimitError, UsageError
from idefics_cli.core.types import CaptionRecord, GenerationRequest, LoadSpec, Progress
from idefics_cli.demo.samples import write_samples
from idefics_cli.engine.factory import engine_factory
from idefics_cli.engine.protocol import Engine
from tests.support.commands import Stream
from tests.support.fakes import FAKE_SPEC, EngineOf, FakeEngine

DEMO = LoadSpec(repo="demo", family="idefics2", name="demo", device="cpu", dtype="float32")
SCRIPT = """
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from idefics_cli.caption.inputs.discover import discover
from idefics_cli.caption.job import CaptionJob, CaptionQuestion
from idefics_cli.caption.output import CaptionOutput
from idefics_cli.caption.run import caption_pictures
from idefics_cli.core.types import CaptionRecord
from idefics_cli.models.hub.facts import find_facts
from idefics_cli.models.planning.plan import PlanChoices, make_plan, probe_machine

plan = make_plan(find_facts("demo"), PlanChoices(device="cpu"), probe_machine())
pictures = discover([sys.argv[1]]).pictures
job = CaptionJob(pictures, (CaptionQuestion("Describe the picture."),), batch_size=4)

def show(event):
    if isinstance(event, CaptionRecord):
        print(event.file_name, event.caption, sep="\\t")

outcome = caption_pictures(job, CaptionOutput("jsonl", Path(sys.argv[2])), plan.spec, on_event=show)
print(outcome.captioned, outcome.failed, outcome.end)
"""


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the test, with three pictures in `photos`, of which a fake opens none."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Path("photos", name).write_text(name)
    return tmp_path


def photo_job(*, batch_size: int = 2) -> CaptionJob:
    return CaptionJob(
        discover(["photos"]).pictures,
        (CaptionQuestion("What?"),),
        batch_size=batch_size,
        patience_seconds=60,
    )


def caption(
    output: CaptionOutput,
    engine: FakeEngine,
    job: CaptionJob | None = None,
    *,
    retry_failed: bool = False,
) -> tuple[RunOutcome, list[RunEvent]]:
    events: list[RunEvent] = []
    outcome = caption_pictures(
        job or photo_job(),
        output,
        FAKE_SPEC,
        factory=EngineOf(engine, phases=["reading"]),
        on_event=events.append,
        retry_failed=retry_failed,
    )
    return outcome, events


def name_of(request: GenerationRequest) -> str:
    return Path(request.attachments[0].source).stem


def test_a_script_without_a_terminal_captions_a_folder(
    tmp_path: Path, warm_python: tuple[str, ...]
) -> None:
    assert len([line for line in SCRIPT.splitlines() if line]) <= 20
    write_samples(tmp_path / "in", count=6, seed=1)
    output = tmp_path / "out.jsonl"
    command = [*warm_python, "-c", SCRIPT, str(tmp_path / "in"), str(output)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, timeout=120
    )

    *lines, end = ran.stdout.splitlines()
    # With PyTorch's builds for CUDA, triton prints "nanobind: leaked ..." as Python ends.
    assert (end, ran.stderr.partition("nanobind: ")[0]) == ("6 0 done", "")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line.split("\t")[1] for line in lines] == [row["caption"] for row in rows]
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert again.stdout == "0 0 done\n"


def test_a_pickled_factory_captions_in_a_process_that_has_not_imported_torch(
    tmp_path: Path,
) -> None:
    write_samples(tmp_path, count=2, seed=1)
    job = CaptionJob(discover([str(tmp_path)]).pictures, (CaptionQuestion("Describe it."),))
    here: list[str | None] = []
    run_captions(job, engine_factory(DEMO), lambda record: here.append(record.caption))
    code = (
        "import pickle, sys\n"
        "factory, job = pickle.load(sys.stdin.buffer)\n"
        "from idefics_cli.caption.runner import run_captions\n"
        "print('torch' in sys.modules)\n"
        "run_captions(job, factory, lambda record: print(record.caption))\n"
        "print('torch' in sys.modules)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((engine_factory(DEMO), job)),
        capture_output=True,
        check=True,
        timeout=120,
    )
    before, *there, after = ran.stdout.decode().splitlines()
    assert (before, after, there) == ("False", "True", here)
    assert len(here) == 2


def test_the_events_of_a_run_come_in_order_and_end_with_the_outcome(photos: Path) -> None:
    bad = {"photos/b.jpg": ImageError("no", kind="truncated")}
    engine = FakeEngine(name_of, image_errors=bad)
    output = CaptionOutput("jsonl", Path("out.jsonl"), report=Path("gallery.html"))
    outcome, events = caption(output, engine)

    records = [event for event in events if isinstance(event, CaptionRecord)]
    ended = next(event for event in events if isinstance(event, RunEnded))
    assert [(r.file_name, r.caption, r.error) for r in records] == [
        ("photos/a.jpg", "a", None),
        ("photos/b.jpg", None, "no"),
        ("photos/c.jpg", "c", None),
    ]
    assert events == [
        Started(3),
        ModelLoading("reading"),
        Ready("0123abc"),
        *records,
        ended,
        *(Reporting(Path("gallery.html"), done, 3) for done in range(4)),
    ]
    assert (outcome.captioned, outcome.failed, outcome.end) == (2, 1, "done")
    assert (outcome.is_resumable, outcome.reported) == (True, 3)
    assert outcome.failures == Path("out.jsonl.failures.txt")
    assert outcome.failures.read_text() == "photos/b.jpg\n"
    assert ended.outcome.captioned == 2


def test_a_run_that_continues_says_what_was_done_before(photos: Path) -> None:
    output = CaptionOutput("csv", Path("out.csv"))
    bad = {"photos/b.jpg": ImageError("no", kind="truncated")}
    caption(output, FakeEngine(name_of, image_errors=bad))
    Path("photos/c.jpg").write_text("another picture")

    left = Todo(discover(["photos/c.jpg"]).pictures, captioned=1, failed=1, changed=1)
    assert left_to_do(photo_job(), output, FAKE_SPEC) == left
    outcome, events = caption(output, FakeEngine(name_of))
    assert events[:2] == [Resumed(left, 3), Started(1, skipped=2)]
    assert (outcome.captioned, outcome.todo) == (1, left)

    outcome, events = caption(output, FakeEngine(name_of), retry_failed=True)
    assert (outcome.captioned, outcome.failed, outcome.failures) == (1, 0, None)


def test_pictures_that_have_a_caption_are_skipped_and_the_model_gets_the_others(
    photos: Path,
) -> None:
    Path("photos/b.txt").write_text("mine")
    engine = FakeEngine(name_of)
    outcome, events = caption(CaptionOutput("txt", existing="skip"), engine)

    assert events[0] == Started(2, skipped=1)
    assert [name_of(request) for request in engine.requests] == ["a", "c"]
    assert (outcome.todo.skipped, Path("photos/b.txt").read_text()) == (1, "mine")


def test_without_anything_to_do_no_model_is_loaded(photos: Path) -> None:
    output = CaptionOutput("tsv", Path("out.tsv"))
    caption(output, FakeEngine(name_of))
    _, events = caption(output, FakeEngine())
    assert not any(isinstance(event, ModelLoading | Ready) for event in events)


def test_a_run_that_continues_begins_with_as_many_pictures_as_fitted_before(photos: Path) -> None:
    for number in range(9):
        Path(f"photos/{number}.jpg").write_text(str(number))

    def at_most_three(requests: Sequence[GenerationRequest]) -> Exception | None:
        return MemoryLimitError("out of memory") if len(requests) > 3 else None

    def batches(batch_size: int, *, until: int) -> tuple[list[int], list[RunEvent]]:
        """Return the batches of a run that is interrupted after *until* pictures."""
        answered = count()

        def answer(request: GenerationRequest) -> str:
            if next(answered) == until:
                raise KeyboardInterrupt
            return name_of(request)

        engine = FakeEngine(answer, completion_error=at_most_three)
        job = photo_job(batch_size=batch_size)
        _, events = caption(CaptionOutput("jsonl", Path("out.jsonl")), engine, job)
        return engine.batches, events

    made, events = batches(6, until=6)
    assert made == [6, 3, 3, 3]
    assert BatchReduced(3) in events
    # A user who asks for another number gets that number.
    assert batches(5, until=0)[0] == [5, 2]
    made, events = batches(6, until=3)
    assert made == [3, 3]
    assert events[1] == BatchLimited(3)
    assert batches(6, until=9)[0] == [3]
    assert len(Path("out.jsonl").read_text("utf-8").splitlines()) == 12


def test_several_questions_begin_with_as_many_requests_as_fitted_before(photos: Path) -> None:
    questions = (CaptionQuestion("What?", "what"), CaptionQuestion("Why?", "why"))
    job = replace(photo_job(batch_size=4), questions=questions)
    output = CaptionOutput("jsonl", Path("out.jsonl"))

    def at_most_one(requests: Sequence[GenerationRequest]) -> Exception | None:
        return MemoryLimitError("out of memory") if len(requests) > 1 else None

    answered = count()

    def answer(request: GenerationRequest) -> str:
        if next(answered) == 4:
            raise KeyboardInterrupt
        return name_of(request)

    engine = FakeEngine(answer, completion_error=at_most_one)
    _, events = caption(output, engine, job)
    assert engine.batches == [4, 2, 1, 1, 1, 1, 1]
    reduced = [event for event in events if isinstance(event, BatchReduced)]
    assert [(event.size, event.requests) for event in reduced] == [(1, 1)]

    engine = FakeEngine(name_of, completion_error=at_most_one)
    _, events = caption(output, engine, job)
    assert BatchLimited(1) in events
    assert set(engine.batches) == {1}, "no batch is tried that did not fit before"


def test_an_output_that_does_not_stay_gets_the_captions_and_cannot_be_continued(
    photos: Path,
) -> None:
    stdout = Stream(terminal=False)
    outcome, _ = caption(CaptionOutput("tsv", stdout=stdout.buffer), FakeEngine(name_of))

    assert stdout.text().splitlines() == [f"photos/{name}.jpg\t{name}" for name in "abc"]
    assert (outcome.captioned, outcome.is_resumable) == (3, False)
    assert sorted(path.name for path in photos.iterdir()) == ["photos"]
    with pytest.raises(UsageError, match="only a run with an output file knows what failed"):
        caption(CaptionOutput("tsv"), FakeEngine(), retry_failed=True)


def test_ctrl_c_while_the_model_loads_is_an_outcome_with_an_empty_report(photos: Path) -> None:
    def load(*, progress: Progress | None = None) -> Engine:
        raise KeyboardInterrupt

    output = CaptionOutput("jsonl", Path("out.jsonl"), report=Path("gallery.html"))
    outcome = caption_pictures(photo_job(), output, FAKE_SPEC, factory=load)
    assert (outcome.end, outcome.captioned, outcome.reported) == ("stopped", 0, 0)
    assert sorted(path.name for path in photos.iterdir()) == ["gallery.html", "photos"]


def test_ctrl_c_while_the_model_answers_is_an_outcome(photos: Path) -> None:
    engine = FakeEngine("one", "two words", interrupt_after=1)
    outcome, events = caption(
        CaptionOutput("jsonl", Path("out.jsonl")), engine, photo_job(batch_size=1)
    )

    assert (outcome.end, outcome.captioned) == ("stopped", 1)
    assert isinstance(events[-1], RunEnded)
    header = json.loads(Path("out.jsonl.run.json").read_text())
    assert (header["end"], header["pictures"]["captioned"]) == ("stopped", 1)
