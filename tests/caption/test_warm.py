"""Processes of workers start before the run is planned, and do errands until they get a task."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.caption.executors.warm import WarmProcesses
from idefics_cli.caption.runner import run_captions
from idefics_cli.core.types import GenerationRequest
from tests.support.captioning import NAMES, RecordList, describe, photo_job
from tests.support.fakes import EngineOf, FakeEngine
from tests.support.workers import Answers, exists, two_workers

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


class LibraryAnswers(Answers):
    """Answers with the id of the process, and whether it has imported the local engine."""

    def __call__(self, request: GenerationRequest) -> str:
        return f"{super().__call__(request)} {'idefics_cli.engine.local.engine' in sys.modules}"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ValueError


def test_warm_processes_answer_an_errand_and_then_work_together(tmp_path: Path) -> None:
    sink = RecordList()
    with WarmProcesses(2) as warm:
        first = warm.ask(os.getpid)
        make = two_workers(LibraryAnswers(folder=str(tmp_path)), warm)
        job, factory = photo_job(batch_size=2), EngineOf(FakeEngine(describe))
        run_captions(job, factory, sink.write, make_executor=make, workers=2)
    assert [record.file_name for record in sink.records] == list(NAMES)
    captions = {record.caption for record in sink.records}
    assert len(captions) == 2
    assert all(caption is not None and caption.endswith(" True") for caption in captions)
    assert f"{first} True" in captions


def test_more_workers_than_warm_processes_start_as_without_them() -> None:
    factory, sink = EngineOf(FakeEngine(describe)), RecordList()
    with WarmProcesses(0) as warm:
        assert warm.ask(os.getpid) is None
        make = two_workers(describe, warm)
        job = photo_job(batch_size=2)
        run_captions(job, factory, sink.write, make_executor=make, workers=2)
    assert [record.file_name for record in sink.records] == list(NAMES)


@pytest.mark.parametrize("function", [die, fail])
def test_a_process_that_dies_of_an_errand_answers_none(
    function: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    with WarmProcesses(1) as warm:
        assert warm.ask(function) is None
        replaced = warm.take_process()
        assert not replaced.has_ended
        replaced.kill()
        replaced.wait()
        replaced.close()
    assert capfd.readouterr() == ("", "")


def test_processes_that_nobody_took_end_with_the_run() -> None:
    with WarmProcesses(2) as warm:
        first = warm.ask(os.getpid)
        assert first is not None
        assert exists(first)
    assert not exists(first)
    warm.close()
