"""`bench start` and `bench load`: processes, and forks that stand for fresh ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import idefics_cli
from idefics_cli.bench import importer as importer_module
from idefics_cli.bench.cold_start import processes
from idefics_cli.bench.cold_start.forks import can_fork
from idefics_cli.bench.importer import Importer, LoadReport, Order
from idefics_cli.bench.measure import Pace, SystemLoad
from idefics_cli.bench.pictures import draw
from idefics_cli.bench.report import Report
from idefics_cli.bench.run import run
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import LoadSpec
from tests.support.bench import QUICK, SPEC, Stand

needs_forks = pytest.mark.skipif(not can_fork(), reason="Linux tells pages, others do not")


# Forks


SIZE = 64 << 20
# As much of a mapped file, and as much of its own, all of it resident.
MAPPED = f"""
import json, mmap, resource, sys
from idefics_cli.bench.cold_start import forks
from idefics_cli.bench.cold_start.child import _peak_resident_bytes
file = open(sys.argv[1], "rb")
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
own = bytearray({SIZE})
for place in range(0, len(own), 4096):
    own[place] = mapped[place]
"""


def told_by(program: str, folder: Path) -> dict[str, int]:
    """Return what a process tells that runs `MAPPED` and *program*.

    It is a process of its own because the tests' has threads.
    """
    file = folder / "file"
    file.write_bytes(bytes(SIZE))
    command = [sys.executable, "-c", MAPPED + program, str(file)]
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert isinstance(told, dict)
    return told


@needs_forks
def test_a_fork_has_as_much_memory_as_its_parent(tmp_path: Path) -> None:
    told = told_by(
        """
parent = _peak_resident_bytes()
forks.in_fork(lambda: print(json.dumps({"parent": parent, "fork": _peak_resident_bytes()})))
""",
        tmp_path,
    )
    assert told["parent"] > 2 * SIZE
    assert told["fork"] == pytest.approx(told["parent"], rel=0.02)


@needs_forks
def test_a_fork_writes_to_its_memory_without_copying_it_first(tmp_path: Path) -> None:
    told = told_by(
        """
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    before = faults()
    for place in range(0, len(own), 4096):
        own[place] = 1
        mapped[place]
    print(json.dumps({"faults": faults() - before}))
forks.in_fork(work)
""",
        tmp_path,
    )
    assert told["faults"] < 0.01 * 2 * SIZE / 4096


@needs_forks
@pytest.mark.parametrize(
    ("work", "code", "error"),
    [
        ("pass", 0, ""),
        ("raise ValueError('no model')", 1, "ValueError: no model"),
        ("sys.exit(0)", 1, "SystemExit: 0"),
        ("os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_how_a_fork_ended_is_told(work: str, code: int, error: str) -> None:
    program = f"""
import os, sys
from idefics_cli.bench.cold_start.forks import in_fork
def work():
    print("begun")
    {work}
print(in_fork(work))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.split()[-1] == str(code)
    assert (done.stderr.splitlines() or [""])[-1] == error


# The process that imports


ORDER = Order("ours", SPEC, Path("model"), Path("picture.png"), 4, in_fork=True)
ECHO = """
import json, pickle, sys
print({model_class!r}, flush=True)
for line in sys.stdin:
    order = pickle.loads(bytes.fromhex(line))
    told = dict(load_seconds=0.5, peak_bytes=7, tokens=[order.max_new_tokens])
    print(json.dumps(told), flush=True)
"""


@pytest.fixture
def started() -> Iterator[list[Importer]]:
    """Importers that are closed at the end."""
    made: list[Importer] = []
    yield made
    for one in made:
        one.close()


def loading(importer: Importer) -> LoadReport:
    importer.wait()
    return importer.load(ORDER)


def test_an_importer_takes_one_order_after_the_other(
    monkeypatch: pytest.MonkeyPatch, started: list[Importer]
) -> None:
    monkeypatch.setattr(importer_module, "_PROGRAM", ECHO)
    importer = Importer("idefics2")
    started.append(importer)
    assert loading(importer) == LoadReport(0.5, 7, (4,))
    assert importer.load(replace(ORDER, max_new_tokens=9)) == LoadReport(0.5, 7, (9,))


# The real one, but for what takes time.
CHILD = """
import os
from idefics_cli.bench.cold_start import child
def load(order):
    {work}
child._import_all, child._load = lambda spec: None, load
print(0, flush=True)
child.main()
"""


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import sys; sys.exit('no torch')", "no torch"),
        ("print(0, flush=True); raise ValueError('no model')", "ValueError: no model"),
        ("import os; print(0, flush=True); os.kill(os.getpid(), 9)", "no message"),
        (CHILD.replace("{work}", "raise ValueError('no model')"), "ValueError: no model"),
        (CHILD.replace("{work}", "os.kill(os.getpid(), 9)"), "a process was ended by signal 9"),
    ],
)
def test_an_importer_that_fails_tells_its_last_line(
    program: str, told: str, monkeypatch: pytest.MonkeyPatch, started: list[Importer]
) -> None:
    monkeypatch.setattr(importer_module, "_PROGRAM", program)
    started.append(Importer("idefics2"))
    with pytest.raises(IdeficsError, match=rf"a process of the benchmark failed \(-c\): {told}"):
        loading(started[0])


class FakeImporter:
    """Loads in no time and notes what it was asked for.

    Attributes:
        made: All that were made.
    """

    made: list[FakeImporter]
    fails: bool

    def __init__(self, family: str) -> None:
        self.orders: list[Order] = []
        self.is_closed = False
        FakeImporter.made.append(self)

    def wait(self) -> None:
        assert not self.is_closed
        if FakeImporter.fails and len(FakeImporter.made) == 1:
            raise IdeficsError("no torch")

    def load(self, order: Order) -> LoadReport:
        assert not self.is_closed
        self.orders.append(order)
        return LoadReport(0.5, 10**9, (1, 2))

    def close(self) -> None:
        self.is_closed = True


def measured(
    *names: str,
    monkeypatch: pytest.MonkeyPatch,
    device: str = "cpu",
    rounds: int = 1,
    fails: bool = False,
    plain_token: str = "A",
) -> Report:
    FakeImporter.made, FakeImporter.fails = [], fails
    monkeypatch.setattr(processes, "Importer", FakeImporter)
    monkeypatch.setattr(processes, "can_fork", lambda: True)
    monkeypatch.setattr(
        processes,
        "_first_output",
        lambda command, clock: (4.0, "A" if "idefics_cli" in command else plain_token),
    )
    stand, report = Stand(spec=replace(SPEC, device=device)), Report()
    run(names, stand.world, replace(QUICK, pace=Pace(rounds, 1e9)), report)
    assert all(importer.is_closed for importer in FakeImporter.made)
    return report


def sides() -> list[list[str]]:
    return [[order.side for order in importer.orders] for importer in FakeImporter.made]


def test_the_process_that_imported_for_start_loads_for_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = measured("start", "load", monkeypatch=monkeypatch, rounds=2)
    # Two rounds of start make two processes; the last one is left.
    assert sides() == [[], ["ours", "plain", "plain", "ours"]]
    assert [row.name for row in report.rows] == [
        "process start to first token", "load", "peak memory",
    ]  # fmt: skip
    # A look at the clock takes 2 seconds.
    assert "alone takes 2.00 s; ours takes 2.00 times as long" in report.rows[0].notes[0]


def test_another_first_token_is_told_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = measured("start", monkeypatch=monkeypatch, plain_token="The").rows
    assert not row.agreement.agrees
    assert row.agreement.text == "first token 'A', plain 'The': differs"


def test_load_alone_starts_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    measured("load", monkeypatch=monkeypatch)
    assert sides() == [["ours", "plain"]]


def test_on_a_gpu_every_process_loads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured("start", "load", monkeypatch=monkeypatch, device="cuda:0")
    assert sides() == [["ours"], ["plain"]]
    assert not any(order.in_fork for importer in FakeImporter.made for order in importer.orders)


def test_a_process_that_failed_is_not_asked_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    report = measured("start", "load", monkeypatch=monkeypatch, fails=True)
    assert [(s.scenario, s.why) for s in report.failures] == [("start", "no torch")]
    assert sides() == [[], ["ours", "plain"]]


@pytest.mark.slow
@needs_forks
@pytest.mark.parametrize("side", ["ours", "plain"])
def test_a_fork_tells_the_figures_of_a_fresh_process(
    side: importer_module.Side, tmp_path: Path, started: list[Importer]
) -> None:
    picture = tmp_path / "picture.png"
    draw(picture, (640, 480), seed=1)
    folder = Path(idefics_cli.__file__).parent / "demo/weights"
    spec = LoadSpec(repo=str(folder), family="idefics2", dtype="float32", threads=1)
    order = Order(side, spec, folder, picture, 4, in_fork=False)
    started += [Importer("idefics2") for _ in range(2)]
    for importer in started:
        importer.wait()
    fresh = started[0].load(order)
    forks = [started[1].load(replace(order, in_fork=True)) for _ in range(3)]
    assert {fork.tokens for fork in forks} == {fresh.tokens}
    for fork in forks:
        assert fork.peak_bytes == pytest.approx(fresh.peak_bytes, rel=0.03)
    # What else the machine does makes this figure move.
    assert min(fork.load_seconds for fork in forks) < 2 * fresh.load_seconds
    assert fresh.load_seconds < 2 * max(fork.load_seconds for fork in forks)


# What the processes use


def test_a_child_counts_as_own_load_while_it_runs_and_once_it_has_ended() -> None:
    load = SystemLoad()
    before = load.own_seconds()
    program = "while __import__('time').process_time() < 0.5: pass\nprint(0, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    running = load.own_seconds()
    child.communicate(b"\n")
    ended = load.own_seconds()
    assert running - before >= 0.45
    assert running <= ended + 0.02 < running + 0.3


def test_only_own_children_count(tmp_path: Path) -> None:
    tail = "0 0 0 0 0 0 0 0 0 100 200 300 400 0"
    for pid, parent in (("11", os.getpid()), ("12", os.getpid() + 1)):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "stat").write_text(f"{pid} (a) b (c) S {parent} {tail}")
    ticks = os.sysconf("SC_CLK_TCK")
    without = SystemLoad(tmp_path / "none").own_seconds()
    found = SystemLoad(tmp_path).own_seconds() - without
    assert found == pytest.approx(1000 / ticks, abs=0.2)
