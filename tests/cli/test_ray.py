"""`--ray` shares pictures among the nodes of a cluster, and refuses what cannot work there."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.caption.executors.cluster import Node, NodeShare
from idefics_cli.caption.executors.ray import open_cluster
from idefics_cli.cli.commands.caption.cluster import choose_share
from idefics_cli.cli.services import Services
from idefics_cli.config.settings import Settings
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.demo.samples import write_samples
from tests.support.clusters import LocalCluster
from tests.support.commands import World, run
from tests.support.fakes import FakeEngine
from tests.support.outputs import contents
from tests.support.photo_folder import describe_photo

HEAD, GPU_NODE, CPU_NODE = Node(0, 0), Node(8, 64), Node(0, 16)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def on(cluster: LocalCluster) -> Services:
    return replace(Services(environ={}), open_cluster=lambda address: cluster)


@pytest.mark.parametrize(
    ("nodes", "settings", "share", "count"),
    [
        ([HEAD, GPU_NODE, GPU_NODE], Settings(), NodeShare(gpus=1), 16),
        ([GPU_NODE, CPU_NODE], Settings(device="cuda"), NodeShare(gpus=1), 8),
        ([GPU_NODE, CPU_NODE], Settings(device="cpu"), NodeShare(cpus=16), 5),
        ([HEAD, CPU_NODE, CPU_NODE], Settings(), NodeShare(cpus=16), 2),
        ([HEAD, CPU_NODE, CPU_NODE], Settings(threads=4), NodeShare(cpus=4), 8),
        ([HEAD], Settings(workers=4), NodeShare(), 4),
        ([HEAD], Settings(device="cuda", workers=32), NodeShare(gpus=1), 32),
        ([GPU_NODE] * 100, Settings(), NodeShare(gpus=1), 512),
    ],
)
def test_each_worker_has_a_gpu_or_the_processors_of_a_node(
    nodes: list[Node], settings: Settings, share: NodeShare, count: int
) -> None:
    assert choose_share(nodes, settings) == (share, count)


@pytest.mark.parametrize(
    ("nodes", "settings", "lacking"),
    [
        ([HEAD], Settings(), "processor"),
        ([CPU_NODE], Settings(device="cuda"), "GPU"),
        ([CPU_NODE], Settings(threads=32), "node with 32 processors"),
    ],
)
def test_a_cluster_without_a_place_is_refused_unless_workers_says_how_many_are_wanted(
    nodes: list[Node], settings: Settings, lacking: str
) -> None:
    with pytest.raises(UsageError, match=f"^the cluster has no {lacking} now$") as caught:
        choose_share(nodes, settings)
    assert "--workers N" in (caught.value.hint or "")
    assert choose_share(nodes, replace(settings, workers=3))[1] == 3


def test_a_run_on_a_cluster_writes_the_bytes_of_a_run_here() -> None:
    write_samples(Path("scenes"), count=12, seed=5)
    Path("broken.png").write_bytes(b"no picture")
    pictures = ("caption", "scenes", "broken.png", "-m", "demo", "--threads", "1")
    for name in ("here", "there"):
        Path(name).mkdir()
    here = run(*pictures, "-o", "here/out.jsonl")
    # Two models at once cannot be loaded in one process.
    cluster = LocalCluster(found=[HEAD, Node(0, 1)])
    there = run(*pictures, "--ray", "auto", "-o", "there/out.jsonl", services=on(cluster))
    assert (here.code, there.code) == (3, 3)
    assert contents(Path("there")) == contents(Path("here"))
    assert len(cluster.actors) == 2, "one made the plan, and one worked"
    assert cluster.share == NodeShare(cpus=1)
    assert there.err.splitlines()[:2] == here.err.splitlines()[:2]
    assert all(actor.was_killed for actor in cluster.actors)


def test_a_dry_run_shows_the_plan_of_a_node_and_captions_nothing() -> None:
    write_samples(Path("scenes"), count=2, seed=5)
    cluster = LocalCluster(found=[Node(0, 2)] * 3)
    ran = run(
        *("caption", "scenes", "-m", "demo", "--ray", "auto", "--threads", "1", "--dry-run"),
        services=on(cluster),
    )
    assert ran.code == 0
    assert ran.err == "note: each node makes a plan in this format for 6 workers\n"
    assert "threads       1" in ran.out
    assert "measured with" not in ran.out
    assert len(cluster.actors) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["-", "--ray", "auto"],
            "error: --ray shares files among nodes, and stdin is one picture\n"
            "hint: leave `--ray` out\n",
        ),
        (
            ["clipboard:", "--ray", "auto"],
            "error: --ray shares files among nodes, and the clipboard is one picture\n"
            "hint: leave `--ray` out\n",
        ),
        (
            ["a.jpg", "--ray", "auto", "--devices", "cpu:2"],
            "error: --ray and --devices exclude each other\n",
        ),
        (
            ["a.jpg", "--ray", "auto", "--server", "http://127.0.0.1:9"],
            "error: --ray and --server exclude each other\n",
        ),
        (
            ["a.jpg", "--ray", "auto", "--device", "cuda:1"],
            "error: the cluster gives each worker its GPU, so that --ray excludes `cuda:1`\n"
            "hint: `--device cuda` or `--device cpu`\n",
        ),
        (
            ["a.jpg", "--workers", "4"],
            "error: --workers needs --ray\nhint: `--devices cpu:2` is for this machine\n",
        ),
        (
            ["a.jpg", "--ray", "photos/"],
            "error: --ray must be auto for the cluster of this machine, or HOST:PORT, "
            "not `photos/`\n",
        ),
    ],
)
def test_what_cannot_work_on_a_cluster_is_refused(arguments: list[str], error: str) -> None:
    Path("a.jpg").write_bytes(b"a")
    with open("a.jpg", "rb") as stdin:
        world = World(FakeEngine(describe_photo), stdin=stdin)
        ran = run("caption", *arguments, services=world.services)
    assert tuple(ran) == (2, "", error)


def test_a_server_of_the_settings_that_excludes_a_cluster_is_told() -> None:
    Path("a.jpg").write_bytes(b"a")
    world = World(FakeEngine(describe_photo), environ={"IDEFICS_SERVER": "http://127.0.0.1:9"})
    ran = run("caption", "a.jpg", "--ray", "auto", services=world.services)
    assert ran.code == 2
    assert "hint: `IDEFICS_SERVER` names the server; `--server local` runs the model" in ran.err


def test_without_ray_the_error_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(IdeficsError, match=r"^a cluster needs the library ray$") as caught:
        open_cluster("auto")
    assert caught.value.hint == "pip install 'idefics-cli[ray]'"


def test_an_address_where_nothing_listens_is_an_error_at_once() -> None:
    pytest.importorskip("ray")
    with pytest.raises(IdeficsError) as caught:
        open_cluster("127.0.0.1:1")
    assert str(caught.value) == "cannot reach the Ray cluster at `127.0.0.1:1`: Connection refused"
    with pytest.raises(UsageError, match="is a Ray client") as client:
        open_cluster("ray://127.0.0.1:1")
    assert "ray job submit" in (client.value.hint or "")


def test_the_actor_imports_nothing_of_this_program_by_itself() -> None:
    module = importlib.import_module("idefics_cli.caption.executors.ray_actor")
    path = module.__file__
    assert path is not None
    program = f"""
import json, runpy, sys
names = runpy.run_path({path!r})
names["RayActor"]()
print(json.dumps([name for name in sys.modules if name.startswith("idefics")]))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(ran.stdout) == []
