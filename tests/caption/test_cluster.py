"""Workers on a cluster: they have the versions and files of the run, or are refused by name."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from idefics_cli.caption.events import RunEvent, WorkerGone, WorkerLost, WorkerShares
from idefics_cli.caption.executors.base import NamedFactory
from idefics_cli.caption.executors.cluster import ActorLost, cluster_executor, run_on
from idefics_cli.caption.executors.node import NodeTask, NodeWorker
from idefics_cli.caption.executors.ray_actor import find_versions
from idefics_cli.caption.executors.reading import PictureReader
from idefics_cli.caption.executors.worker_protocol import Task, WorkerEnded
from idefics_cli.caption.outcome import RunOutcome
from idefics_cli.caption.runner import run_captions
from idefics_cli.core.errors import IdeficsError, ImageError, PlanError
from idefics_cli.core.types import CaptionRecord, GenerationRequest
from tests.support.captioning import EXPECTED, NAMES, RecordList, describe, photo_job, texts
from tests.support.clusters import LocalCluster
from tests.support.fakes import EngineOf, FakeEngine


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Path(name).write_bytes(b"x")


def slowly(request: GenerationRequest) -> str:
    time.sleep(0.005)
    return describe(request)


def engines(*engines: FakeEngine) -> list[NamedFactory]:
    return [(str(number), EngineOf(engine)) for number, engine in enumerate(engines, 1)]


def caption(
    cluster: LocalCluster,
    workers: Sequence[NamedFactory] = (),
    on_event: Callable[[RunEvent], None] = lambda event: None,
) -> tuple[RunOutcome, list[CaptionRecord], list[RunEvent]]:
    """Return the outcome, the records and the other events of a run."""
    sink, events = RecordList(), list[RunEvent]()

    def note(event: RunEvent) -> None:
        on_event(event)
        if not isinstance(event, CaptionRecord):
            events.append(event)

    outcome = run_captions(
        photo_job(batch_size=2),
        EngineOf(FakeEngine(describe)),
        sink.write,
        make_executor=partial(cluster_executor, cluster=cluster, workers=workers),
        on_event=note,
        workers=2,
    )
    return outcome, sink.records, events


def test_the_workers_of_two_nodes_write_what_one_process_writes() -> None:
    cluster = LocalCluster()
    two = engines(FakeEngine(slowly), FakeEngine(slowly))
    outcome, records, events = caption(cluster, two)
    assert outcome == RunOutcome(25, 0)
    assert texts(records) == EXPECTED
    (*_, shares) = [event for event in events if isinstance(event, WorkerShares)]
    assert sorted(name for name, _ in shares.done) == ["n1", "n2"]
    assert sum(count for _, count in shares.done) == 25
    assert all(actor.was_killed for actor in cluster.actors)


def test_workers_of_one_node_are_counted_together() -> None:
    cluster = LocalCluster(found=LocalCluster().found[:1])
    _, _, events = caption(cluster, engines(FakeEngine(slowly), FakeEngine(slowly)))
    (*_, shares) = [event for event in events if isinstance(event, WorkerShares)]
    assert shares.done == (("n1", 25),)


@pytest.mark.parametrize(
    ("package", "there", "reason"),
    [
        ("transformers", "5.1.0", "the node n2 has transformers 5.1.0, and this machine {here}"),
        ("torch", None, "the node n2 lacks torch"),
        ("idefics-cli", None, "the node n2 lacks idefics-cli"),
        ("python", "3.99.1", "the node n2 has python 3.99, and this machine 3.1"),
    ],
)
def test_a_node_with_other_versions_is_refused_by_name_and_the_others_go_on(
    package: str, there: str | None, reason: str
) -> None:
    cluster = LocalCluster(versions={"n2": {package: there}})
    outcome, records, events = caption(cluster, engines(*[FakeEngine(slowly)] * 4))
    assert outcome == RunOutcome(25, 0)
    assert texts(records) == EXPECTED
    (gone,) = [event for event in events if isinstance(event, WorkerGone)]
    assert gone.name == "n2"
    assert gone.reason.startswith(reason.format(here=find_versions()[package]))


def test_if_no_node_has_the_versions_the_error_says_how_to_mend_it() -> None:
    versions = {"torch": "1.0"}
    with pytest.raises(IdeficsError, match=r"^the node n1 has torch 1\.0, and ") as caught:
        caption(LocalCluster(versions={"n1": versions, "n2": versions}))
    assert caught.value.hint == f"`pip install torch=={find_versions()['torch']}` on that node"


def test_a_node_that_lacks_the_files_is_named_once_and_loses_no_picture() -> None:
    lacking = {name: ImageError(f"no file `{name}`", kind="missing") for name in NAMES}
    blind = FakeEngine(image_errors=lacking)
    outcome, records, events = caption(
        LocalCluster(), engines(FakeEngine(slowly), blind, FakeEngine(slowly), blind)
    )
    assert outcome == RunOutcome(25, 0)
    assert texts(records) == EXPECTED
    (gone,) = [event for event in events if isinstance(event, WorkerGone)]
    reason = f"the node n2 does not see the files in `{Path.cwd()}`"
    assert gone == WorkerGone("n2", reason)
    assert not [event for event in events if isinstance(event, WorkerLost)]


def test_a_picture_that_is_missing_everywhere_is_a_failed_row() -> None:
    Path("03.jpg").unlink()
    error = {"03.jpg": ImageError("no file `03.jpg`", kind="missing")}
    outcome, records, _ = caption(LocalCluster(), engines(FakeEngine(describe, image_errors=error)))
    assert outcome == RunOutcome(24, 1)
    assert [r.file_name for r in records if r.error] == ["03.jpg"]


def test_a_worker_looks_for_a_picture_before_it_loads_a_model() -> None:
    task = Task(EngineOf(FakeEngine(describe)), photo_job(()), PictureReader)
    worker = NodeWorker(NodeTask(task, "/", "/no/such/a.jpg", "gpu3"))
    (ended,) = worker.events()
    assert isinstance(ended, WorkerEnded)
    assert str(ended.error) == "the node gpu3 does not see the files in `/no/such`"


def test_the_pictures_of_a_lost_node_are_captioned_as_if_they_had_not_begun() -> None:
    cluster = LocalCluster()
    lost = ActorLost("its node is lost", blames_pictures=False)

    def on_event(event: RunEvent) -> None:
        if isinstance(event, CaptionRecord) and event.file_name == "04.jpg":
            cluster.actors[1].lost = lost

    two = engines(FakeEngine(slowly), FakeEngine(slowly))
    outcome, records, events = caption(cluster, two, on_event)
    assert outcome == RunOutcome(25, 0)
    assert texts(records) == EXPECTED
    (found,) = [event for event in events if isinstance(event, WorkerLost)]
    assert (found.name, found.reason) == ("n2", "its node is lost")
    assert len(cluster.actors) == 3, "another worker was hired"


def test_a_worker_without_a_place_does_not_hinder_the_others_and_ends_with_the_run() -> None:
    cluster = LocalCluster(full_until=1)
    outcome, records, events = caption(cluster, engines(FakeEngine(slowly), FakeEngine(slowly)))
    assert outcome == RunOutcome(25, 0)
    assert texts(records) == EXPECTED
    assert [event for event in events if isinstance(event, WorkerShares)][-1].done == (("n1", 25),)
    assert [actor.was_killed for actor in cluster.actors] == [True, True]
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if "_attend" in name]


def answer() -> int:
    return 42


def fail() -> int:
    raise PlanError("too small", hint="a smaller model")


def test_a_function_runs_on_a_node_with_these_versions() -> None:
    told: list[str] = []
    assert run_on(LocalCluster(), answer, told.append) == 42
    with pytest.raises(PlanError, match="too small") as caught:
        run_on(LocalCluster(), fail, told.append)
    assert caught.value.hint == "a smaller model"
    with pytest.raises(IdeficsError, match="the node n1 lacks torch"):
        run_on(LocalCluster(versions={"n1": {"torch": None}}), answer, told.append)
    assert told == []
