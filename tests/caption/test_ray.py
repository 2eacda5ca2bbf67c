"""Runs on a Ray cluster with three raylets: nodes and runs are killed, and no picture is lost.

.venv/bin/pytest -m slow tests/caption/test_ray.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from idefics_cli.caption.executors.cluster import Cluster, cluster_executor
from idefics_cli.caption.executors.ray import open_cluster
from idefics_cli.caption.outcome import RunOutcome
from idefics_cli.caption.runner import run_captions
from idefics_cli.core.types import GenerationRequest
from tests.support.captioning import NAMES, RecordList, describe, photo_job
from tests.support.fakes import EngineOf, FakeEngine
from tests.support.raylets import Raylets

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
ray = pytest.importorskip("ray")

TOP = Path(__file__).parents[2]
BATCH, WORKERS, COUNT = 4, 2, 2000
WINDOW = 4 * BATCH


@pytest.fixture(scope="module")
def raylets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raylets]:
    with Raylets(WORKERS, tmp_path_factory.mktemp("ray")) as raylets:
        yield raylets


@pytest.fixture
def cluster(raylets: Raylets) -> Iterator[Cluster]:
    yield open_cluster(raylets.address)
    ray.shutdown()


@dataclass(frozen=True)
class Answers:
    """Answers with the name of the picture.

    Attributes:
        log: File that gets a line for each answer; empty for none.
        seconds: How long an answer takes.
        deadly: Name of a picture whose answer kills the process.
    """

    log: str = ""
    seconds: float = 0.01
    deadly: str = ""

    def __call__(self, request: GenerationRequest) -> str:
        source = request.attachments[0].source
        if Path(source).name == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        if self.log:
            with open(self.log, "a") as log:
                log.write(f"{source}\n")
        return f"a picture of {source}"


def test_the_records_come_in_order_from_two_nodes(cluster: Cluster) -> None:
    sink = RecordList()
    named = [(str(number), EngineOf(FakeEngine(Answers()))) for number in range(WORKERS)]
    outcome = run_captions(
        photo_job(batch_size=2),
        EngineOf(FakeEngine(describe)),
        sink.write,
        make_executor=partial(cluster_executor, cluster=cluster, workers=named),
        workers=WORKERS,
    )
    assert outcome == RunOutcome(25, 0)
    assert [r.file_name for r in sink.records] == list(NAMES)
    assert [r.caption for r in sink.records] == [f"a picture of {name}" for name in NAMES]


def test_a_picture_that_kills_two_actors_is_a_failed_record(cluster: Cluster) -> None:
    sink = RecordList()
    engine = EngineOf(FakeEngine(Answers(deadly="11.jpg")))
    outcome = run_captions(
        photo_job(batch_size=2),
        engine,
        sink.write,
        make_executor=partial(cluster_executor, cluster=cluster, workers=[("1", engine)]),
    )
    assert outcome == RunOutcome(24, 1)
    (bad,) = [record for record in sink.records if record.error]
    assert (bad.file_name, bad.error_kind) == ("11.jpg", "worker_died")
    assert "its process died" in (bad.error or "")


PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from idefics_cli.caption.executors.cluster import cluster_executor
from idefics_cli.caption.executors.ray import open_cluster
from idefics_cli.caption.output import CaptionOutput
from idefics_cli.caption.run import caption_pictures
from tests.caption.test_ray import BATCH, COUNT, WORKERS, Answers
from tests.support.captioning import photo_job
from tests.support.fakes import FAKE_SPEC, EngineOf, FakeEngine

engine = EngineOf(FakeEngine(Answers(log="log")))
outcome = caption_pictures(
    photo_job([f"{number:04}.jpg" for number in range(COUNT)], batch_size=BATCH),
    CaptionOutput("jsonl", Path("out.jsonl")),
    FAKE_SPEC,
    factory=engine,
    executor=partial(cluster_executor, cluster=open_cluster(sys.argv[1])),
    workers=[(str(number), engine) for number in range(WORKERS)],
)
print(outcome.end, outcome.captioned, outcome.failed)
"""


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_raylet_and_the_run_are_killed_and_no_picture_is_lost_or_done_twice(
    raylets: Raylets, tmp_path: Path
) -> None:
    names = [f"{number:04}.jpg" for number in range(COUNT)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    out, log = tmp_path / "out.jsonl", tmp_path / "log"

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, raylets.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(TOP)},
        )

    with start() as first:
        wait_for(lambda: lines(out) > 500)
        raylets.kill()
        raylets.add()
        wait_for(lambda: lines(out) > 1200)
        first.kill()
    with start() as second:
        told, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert told.split()[::2] == ["done", "0"]
    assert errors == ""

    rows = [json.loads(line)["file_name"] for line in out.read_text().splitlines()]
    assert rows == names
    answered = Counter(log.read_text().splitlines())
    assert set(answered) == set(names)
    # The lost node had one window, and the killed run that of each worker.
    assert answered.total() - COUNT <= (1 + WORKERS) * WINDOW


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from idefics_cli.demo.samples import write_samples

    folder = tmp_path_factory.mktemp("scenes")
    write_samples(folder / "scenes", count=400, seed=5)
    return folder


def command(scenes: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "idefics_cli", "caption", "scenes", "-m", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=scenes,
        env={**os.environ, "PYTHONPATH": str(TOP)},
    )


def test_nothing_of_ray_is_among_the_captions_even_if_a_node_is_lost(
    raylets: Raylets, scenes: Path
) -> None:
    with command(scenes, "--threads", "1") as alone:
        expected, _ = alone.communicate(timeout=120)
    with command(scenes, "--ray", raylets.address, "--batch-size", "4") as shared:
        assert shared.stdout is not None
        first = shared.stdout.readline()
        raylets.kill()
        raylets.add()
        rest, errors = shared.communicate(timeout=120)
    assert shared.returncode == 0
    assert first + rest == expected
    kinds = {line.split(" ")[0] for line in errors.splitlines()}
    assert kinds <= {"warning:", "note:", "captioned"}, errors
    assert "captioned 400 of 400" in errors


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_ends_a_run_which_the_same_command_continues(
    raylets: Raylets, scenes: Path, tmp_path: Path, signals: int
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ("--ray", raylets.address, "--batch-size", "2", "-o", str(out))
    with command(scenes, *arguments) as first:
        wait_for(lambda: lines(out) > 20)
        for _ in range(signals):
            first.send_signal(signal.SIGINT)
            time.sleep(0.05)
        begun = time.monotonic()
        _, errors = first.communicate(timeout=60)
    assert time.monotonic() - begun < 20
    assert first.returncode == 130
    assert "the same command continues from here" in errors
    assert lines(out) < 400
    with command(scenes, *arguments) as second:
        _, errors = second.communicate(timeout=120)
    assert second.returncode == 0
    names = [json.loads(line)["file_name"] for line in out.read_text().splitlines()]
    assert names == [f"scenes/scene-{number:03}.png" for number in range(400)]
