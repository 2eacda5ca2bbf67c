"""A process imports the libraries once, and forks for all workers on a processor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from idefics_cli.caption.events import RunEvent, WorkerLost
from idefics_cli.caption.executors.forks import ForkServer
from idefics_cli.caption.executors.warm import WarmProcesses
from idefics_cli.caption.executors.worker_process import WorkerProcess
from idefics_cli.caption.executors.worker_protocol import Errand
from idefics_cli.caption.runner import run_captions
from idefics_cli.cli.services import Services
from idefics_cli.core.types import CaptionRecord
from tests.support.captioning import NAMES, RecordList, describe, photo_job
from tests.support.fakes import EngineOf, FakeEngine
from tests.support.workers import answer_of, answer_parent, two_workers, without_libraries

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely")

WAIT_SECONDS = 30


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture
def quick_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let servers start fast; the tests without this fixture use what they really import."""
    (folder := tmp_path / "libraries").mkdir()
    monkeypatch.syspath_prepend(without_libraries(folder))


def end(process: WorkerProcess) -> int:
    """Kill *process*, and return its exit code."""
    process.kill()
    code = process.wait()
    process.close()
    return code


def state() -> tuple[int, int, int, bool]:
    """Return ids of this process, its parent and its group, and whether it has the libraries."""
    has_engine = "idefics_cli.engine.local.engine" in sys.modules
    return os.getpid(), os.getppid(), os.getpgrp(), has_engine


def leave() -> None:
    sys.stderr.write("the disk is full\n")
    sys.stderr.flush()
    os._exit(7)


def connections() -> set[str]:
    """Return the pipes and sockets that are open in this process."""
    open_now = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    targets = {os.readlink(path) for path in open_now if os.path.lexists(path)}
    return {target for target in targets if target.startswith(("pipe:", "socket:"))}


def is_running(process_id: int) -> bool:
    """Whether the process runs; one that has ended may wait for its parent."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text("utf-8")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def wait_for_end(process_id: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while is_running(process_id) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(process_id)


def test_all_forks_have_the_libraries_of_one_parent(server: ForkServer) -> None:
    first, second = WorkerProcess(server.fork()), WorkerProcess(server.fork())
    (one, *shared), (two, *others) = answer_of(first, state), answer_of(second, state)
    group, *_ = shared
    assert one != two
    assert group != os.getpid()
    assert shared == others == [group, group, True]
    assert [end(first), end(second)] == [-9, -9]


def test_the_exit_code_and_the_last_line_of_a_fork_are_its_own(server: ForkServer) -> None:
    left, killed = WorkerProcess(server.fork()), WorkerProcess(server.fork())
    left.send(Errand(leave))
    assert (left.wait(), left.last_line) == (7, "the disk is full")
    left.close()
    assert not killed.has_ended
    process_id = answer_of(killed, os.getpid)
    os.kill(process_id, signal.SIGUSR1)
    assert killed.wait() == -signal.SIGUSR1
    killed.close()


def test_a_fork_holds_no_pipe_of_another_one(server: ForkServer) -> None:
    first, second = WorkerProcess(server.fork()), WorkerProcess(server.fork())
    one, two = answer_of(first, connections), answer_of(second, connections)
    assert (len(one), len(two), len(one | two)) == (3, 3, 6)
    end(first)
    end(second)


def test_a_fork_is_killed_before_it_starts(quick_server: None) -> None:
    with ForkServer() as server:
        process = WorkerProcess(server.fork())
        assert not process.has_ended
        assert end(process) == -9
        with pytest.raises(OSError, match="Broken pipe"):
            server.fork()


def test_files_of_the_current_folder_are_not_imported(
    here: Path, monkeypatch: pytest.MonkeyPatch, quick_server: None
) -> None:
    for name in ("pickle", "socket", "torch", "transformers"):
        (here / f"{name}.py").write_text("open('ran', 'w')\n", "utf-8")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with ForkServer() as server:
        process = WorkerProcess(server.fork())
        assert answer_of(process, os.getcwd) == str(here)
        end(process)
    assert not (here / "ran").exists()


def caption(warm: WarmProcesses, on_event: Callable[[RunEvent], None]) -> list[CaptionRecord]:
    """Caption 25 pictures with two workers, which answer with the id of their parent."""
    sink = RecordList()
    run_captions(
        photo_job(batch_size=2),
        EngineOf(FakeEngine(describe)),
        sink.write,
        make_executor=two_workers(answer_parent, warm),
        on_event=on_event,
        workers=2,
    )
    assert [record.file_name for record in sink.records] == list(NAMES)
    return sink.records


def test_if_nothing_forks_any_more_each_worker_starts_by_itself(quick_server: None) -> None:
    with WarmProcesses(2, forks=True) as warm:
        parent = warm.ask(os.getppid)
        assert parent is not None
        os.kill(parent, signal.SIGKILL)
        wait_for_end(parent)
        records = caption(warm, lambda event: None)
        assert warm.ask(os.getppid) == os.getpid()
    assert {record.caption for record in records} == {str(os.getpid())}


def test_workers_survive_the_process_that_forked_them(quick_server: None) -> None:
    events: list[RunEvent] = []

    with WarmProcesses(2, forks=True) as warm:
        parent = warm.ask(os.getppid)
        assert parent is not None

        def on_event(event: RunEvent) -> None:
            events.append(event)
            if len(events) == 10:
                os.kill(parent, signal.SIGKILL)

        records = caption(warm, on_event)
    assert records[0].caption == str(parent)
    assert records[-1].caption != str(parent)
    assert not [event for event in events if isinstance(event, WorkerLost)]


@pytest.mark.parametrize(("devices", "forks"), [(["cpu", "cpu"], True), (["cpu", "cuda:0"], False)])
def test_workers_with_a_gpu_start_by_themselves(
    devices: list[str], forks: bool, quick_server: None
) -> None:
    warm_up = Services().warm_up
    assert warm_up is not None
    with warm_up(devices) as warm:
        assert (warm.ask(os.getppid) != os.getpid()) is forks


PROGRAM = """
import os, sys
from idefics_cli.caption.executors.warm import WarmProcesses
from tests.support.workers import answer_of

warm = WarmProcesses(2, forks=True)
print(warm.ask(os.getppid), flush=True)
if sys.argv[1] == "late":
    print(answer_of(warm.take_process(), os.getpid), flush=True)
else:
    warm.take_process()
    print(0, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_no_process_outlives_a_run_that_is_killed(when: str, tmp_path: Path) -> None:
    # The early kill comes while the server imports.
    libraries = without_libraries(tmp_path, seconds=1.0 if when == "early" else 0.0)
    folders = [libraries, str(Path(__file__).parents[2])]
    program = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, when],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
    )
    with program:
        assert program.stdout is not None
        ids = [int(word) for _ in range(2) for word in program.stdout.readline().split()]
        program.kill()
    for process_id in filter(None, ids):
        wait_for_end(process_id)
