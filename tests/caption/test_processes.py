"""Worker processes: they die, print and are interrupted, and every picture has one record."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from idefics_cli.caption.events import RunEvent, Stopping, WorkerLost, WorkerShares
from idefics_cli.caption.executors import MakeExecutor
from idefics_cli.caption.executors.processes import process_executor
from idefics_cli.caption.executors.warm import WarmProcesses
from idefics_cli.caption.outcome import RunOutcome
from idefics_cli.caption.runner import run_captions
from idefics_cli.cli.services import Services
from idefics_cli.core.types import CaptionRecord
from idefics_cli.hardware.machine import Machine, probe_machine
from tests.support.captioning import NAMES, RecordList, describe, photo_job
from tests.support.commands import run
from tests.support.fakes import EngineOf, FakeEngine
from tests.support.outputs import contents
from tests.support.workers import (
    Answers,
    answer_processors,
    exists,
    two_workers,
    without_libraries,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture(scope="module", params=["started", "forked"])
def warm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WarmProcesses]:
    """What starts the processes: each by itself, or all by one that would import the libraries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(without_libraries(tmp_path_factory.mktemp("libraries")))
        warm = WarmProcesses(0, forks=request.param == "forked")
    with warm:
        yield warm


def caption(
    make_executor: MakeExecutor,
    sink: RecordList,
    *,
    on_event: Callable[[RunEvent], None] = lambda event: None,
    batch_size: int = 2,
) -> RunOutcome:
    return run_captions(
        photo_job(batch_size=batch_size),
        EngineOf(FakeEngine(describe)),
        sink.write,
        make_executor=make_executor,
        on_event=on_event,
        workers=2,
    )


def pids(records: list[CaptionRecord]) -> set[int]:
    return {int(record.caption) for record in records if record.caption}


def test_the_records_come_in_order_from_two_processes_which_then_end(
    tmp_path: Path, warm: WarmProcesses
) -> None:
    sink, events = RecordList(), list[RunEvent]()
    answers = Answers(folder=str(tmp_path))
    outcome = caption(two_workers(answers, warm), sink, on_event=events.append)

    assert outcome == RunOutcome(25, 0)
    assert [record.file_name for record in sink.records] == list(NAMES)
    found = pids(sink.records)
    assert len(found) == 2
    assert os.getpid() not in found
    assert not any(map(exists, found))
    (*_, last) = [event for event in events if isinstance(event, WorkerShares)]
    assert sum(count for _, count in last.done) == 25


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="as on macOS")
def test_a_worker_uses_the_processors_that_it_is_given() -> None:
    sink, (first, *_) = RecordList(), sorted(os.sched_getaffinity(0))
    named = [("a", EngineOf(FakeEngine(answer_processors)))]
    caption(partial(process_executor, workers=named, processors=[frozenset({first})]), sink)
    assert {record.caption for record in sink.records} == {f"[{first}]"}


def test_what_workers_print_is_not_among_the_records(
    warm: WarmProcesses, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = RecordList()
    caption(two_workers(Answers(prints=True), warm), sink)
    assert len(sink.records) == 25
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_is_killed_is_replaced_and_its_pictures_go_back(
    tmp_path: Path, warm: WarmProcesses
) -> None:
    sink, events, killed = RecordList(), list[RunEvent](), list[int]()

    def on_event(event: RunEvent) -> None:
        events.append(event)
        if isinstance(event, CaptionRecord) and len(sink.records) == 5:
            killed.append(int(event.caption or 0))
            os.kill(killed[0], signal.SIGKILL)

    answers = Answers(seconds=0.02, folder=str(tmp_path))
    assert caption(two_workers(answers, warm), sink, on_event=on_event) == RunOutcome(25, 0)
    assert [record.file_name for record in sink.records] == list(NAMES)
    assert len(pids(sink.records)) == 3
    (lost,) = [event for event in events if isinstance(event, WorkerLost)]
    assert lost.reason == "killed by SIGKILL: perhaps there was too little memory"
    assert lost.count > 0
    assert not any(map(exists, pids(sink.records)))


def test_a_picture_that_kills_two_workers_is_a_failed_record(warm: WarmProcesses) -> None:
    sink = RecordList()
    assert caption(two_workers(Answers(deadly="11.jpg"), warm), sink) == RunOutcome(24, 1)
    assert [record.file_name for record in sink.records] == list(NAMES)
    (bad,) = [record for record in sink.records if record.error]
    assert (bad.file_name, bad.error_kind) == ("11.jpg", "worker_died")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_the_first_signal_workers_finish_their_batches(
    warm: WarmProcesses, number: signal.Signals
) -> None:
    events: list[RunEvent] = []

    class Pressing(RecordList):
        def write(self, record: CaptionRecord) -> None:
            super().write(record)
            if len(self.records) == 3:
                signal.raise_signal(number)

    sink = Pressing()
    outcome = caption(two_workers(Answers(seconds=0.02), warm), sink, on_event=events.append)
    assert outcome.end == "interrupted"
    assert 3 <= len(sink.records) == outcome.captioned < 25
    assert events.count(Stopping()) == 1
    assert not any(map(exists, pids(sink.records)))


def test_a_second_signal_kills_the_workers_at_once(warm: WarmProcesses) -> None:
    class Pressing(RecordList):
        def write(self, record: CaptionRecord) -> None:
            super().write(record)
            if len(self.records) == 3:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    sink = Pressing()
    with pytest.raises(KeyboardInterrupt):
        caption(two_workers(Answers(seconds=0.02), warm), sink)
    assert 3 <= len(sink.records) < 25
    assert not any(map(exists, pids(sink.records)))


PROGRAM = """
import sys
from idefics_cli.caption.executors.warm import WarmProcesses
from idefics_cli.caption.runner import run_captions
from tests.support.captioning import describe, photo_job
from tests.support.fakes import EngineOf, FakeEngine
from tests.support.workers import Answers, two_workers

def write(record):
    print(record.caption, flush=True)

with WarmProcesses(0, forks=sys.argv[1] == "forked") as warm:
    result = run_captions(
        photo_job([f"{n}.jpg" for n in range(1000)], batch_size=2),
        EngineOf(FakeEngine(describe)),
        write,
        make_executor=two_workers(Answers(seconds=0.02), warm),
        workers=2,
    )
print(result.end)
"""


@pytest.fixture(params=["started", "forked"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> subprocess.Popen[str]:
    folders = [without_libraries(tmp_path), str(Path(__file__).parents[2])]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, request.param],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
    )


def first_pids(program: subprocess.Popen[str]) -> set[int]:
    """Return the process ids of both workers; on a busy machine, one starts seconds later."""
    assert program.stdout is not None
    found: set[int] = set()
    while len(found) < 2:
        found.add(int(program.stdout.readline()))
    return found


def test_no_worker_outlives_a_run_that_is_killed(program: subprocess.Popen[str]) -> None:
    with program:
        found = first_pids(program)
        program.kill()
    deadline = time.monotonic() + 20
    while any(map(exists, found)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(exists, found))


def test_ctrl_c_in_a_terminal_does_not_reach_the_workers(program: subprocess.Popen[str]) -> None:
    with program:
        found = first_pids(program)
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does
        assert program.stdout is not None
        assert program.stdout.read().splitlines()[-1] == "interrupted"
        assert program.wait(30) == 0
    assert not any(map(exists, found))


def probe_elsewhere(process_id: int) -> Machine:
    """Describe the computer, but not in the process of this id."""
    assert os.getpid() != process_id, "it would import torch"
    return probe_machine()


@pytest.mark.parametrize("count", [24, pytest.param(2000, marks=pytest.mark.slow)])
def test_two_workers_write_the_bytes_that_one_process_writes(tmp_path: Path, count: int) -> None:
    from idefics_cli.demo.samples import write_samples

    write_samples(tmp_path / "scenes", count=count, seed=5)
    arguments = ("caption", str(tmp_path / "scenes"), "-m", "demo", "--batch-size", "4")
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
    alone = run(*arguments, "-o", str(tmp_path / "alone" / "out.jsonl"), "--threads", "1")
    services = Services(probe=partial(probe_elsewhere, os.getpid()))
    words = (*arguments, "-o", str(tmp_path / "shared" / "out.jsonl"), "--devices", "cpu:2")
    shared = run(*words, services=services)

    assert (alone.code, shared.code) == (0, 0)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert "note: by each worker: cpu:0 " in shared.err
