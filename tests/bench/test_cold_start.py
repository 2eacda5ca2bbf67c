"""Fresh processes, and the scenarios `start` and `load` that need them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import idefics_cli
from idefics_cli.bench.cold_start.processes import (
    FreshProcesses,
    LoadOrder,
    LoadReport,
    Side,
    python_command,
)
from idefics_cli.bench.measure import Pace
from idefics_cli.bench.pictures import draw
from idefics_cli.bench.report import Report
from idefics_cli.bench.run import run
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import LoadSpec
from idefics_cli.hardware.load import SystemLoad
from tests.support.bench import QUICK, SPEC, FakeProcesses, Stand
from tests.support.fakes import FakeClock

ORDER = LoadOrder("ours", SPEC, Path("model"), Path("picture.png"), 4)
FAILED = "a process of the benchmark failed "


# Processes


def test_the_order_reaches_the_child_whole() -> None:
    child = """
import json, pickle, sys
order = pickle.load(sys.stdin.buffer)
print(json.dumps(dict(load_seconds=0.5, peak_bytes=7, tokens=[order.max_new_tokens])))
"""
    processes = FreshProcesses(FakeClock(), child=child)

    assert processes.load(ORDER) == LoadReport(0.5, 7, (4,))
    assert processes.load(replace(ORDER, max_new_tokens=9)) == LoadReport(0.5, 7, (9,))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('no torch')", "no torch"),
        ("raise ValueError('no model')", "ValueError: no model"),
        ("import os; os._exit(1)", "no message"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9 ended it"),
    ],
)
def test_a_process_that_fails_gives_its_last_line(program: str, message: str) -> None:
    with pytest.raises(IdeficsError, match=rf"^{FAILED}\(load ours\): {message}$"):
        FreshProcesses(FakeClock(), child=program).load(ORDER)
    with pytest.raises(IdeficsError, match=rf"^{FAILED}\(plain\): {message}$"):
        FreshProcesses(FakeClock()).time_first_output("plain", python_command("-c", program))


def test_the_time_ends_with_the_first_byte_and_the_output_is_whole() -> None:
    program = "import sys; sys.stdout.write('A'); sys.stdout.flush(); input = sys.stdin.read()\n"
    command = [sys.executable, "-c", program + "sys.stdout.write(' star' + input)"]

    # The clock is read at the start and after the first byte.
    assert FreshProcesses(FakeClock(3.0)).time_first_output("ours", command) == (3.0, "A star")


def test_the_child_refuses_what_is_not_an_order() -> None:
    command = [sys.executable, "-c", "from idefics_cli.bench.cold_start.child import main; main()"]
    done = subprocess.run(command, input=b"\x80\x04N.", capture_output=True, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == b"TypeError: stdin holds no order"


SIZE = 64 << 20


def test_the_peak_of_the_memory_counts_mapped_files_and_outlives_them(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(SIZE))
    program = """
import json, mmap, sys
from idefics_cli.bench.cold_start.child import peak_resident_bytes
before = peak_resident_bytes()
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    own = bytearray(mapped)
del own
print(json.dumps([before, peak_resident_bytes()]))
"""
    command = [sys.executable, "-c", program, str(file)]
    before, after = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    assert after - before == pytest.approx(2 * SIZE, rel=0.1)


# The current folder

STOP = "import json\nraise SystemExit(1)\n"
TRAP = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"


def test_no_process_runs_a_file_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch", "json", "idefics_cli"):
        (tmp_path / f"{module}.py").write_text(TRAP, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    processes = FakeProcesses()
    measured("start", processes=processes)
    assert sorted(processes.commands) == ["imports", "ours", "plain"]
    for name, command in processes.commands.items():
        # Importing torch takes seconds, so it is left out here. The model of our command does not
        # exist, so that the command fails.
        quick = [part.replace("import torch\n", STOP) for part in command]
        with pytest.raises(IdeficsError):
            FreshProcesses(FakeClock()).time_first_output(name, quick)
        assert not (tmp_path / "ran").exists(), name
    with pytest.raises(IdeficsError):
        FreshProcesses(FakeClock(), child=STOP).load(ORDER)
    assert not (tmp_path / "ran").exists()


def test_python_is_always_started_without_the_current_folder() -> None:
    package = Path(idefics_cli.__file__).parent
    starts = {
        path.relative_to(package).as_posix(): [
            line.strip()
            for line in path.read_text("utf-8").splitlines()
            if "sys.executable" in line
        ]
        for path in package.rglob("*.py")
    }
    found = {name: lines for name, lines in starts.items() if lines}
    assert sorted(found) == ["bench/cold_start/processes.py", "caption/executors/worker_process.py"]
    assert all('[sys.executable, "-P", ' in line for lines in found.values() for line in lines)


# Scenarios


def measured(
    *names: str,
    processes: FakeProcesses,
    device: str = "cpu",
    rounds: int = 1,
) -> Report:
    stand, report = Stand(spec=replace(SPEC, device=device), processes=processes), Report()
    run(names, stand.world, replace(QUICK, pace=Pace(rounds, 1e9)), report)
    return report


def test_every_figure_has_a_process_and_the_sides_take_turns() -> None:
    processes = FakeProcesses()
    report = measured("start", "load", processes=processes, rounds=2)

    assert [row.name for row in report.rows] == [
        "process start to first token", "load", "peak memory",
    ]  # fmt: skip
    assert processes.started == ["ours", "plain", "imports", "imports", "plain", "ours"]
    assert [order.side for order in processes.orders] == ["ours", "plain", "plain", "ours"]
    start, load, memory = report.rows
    assert (start.ours.values, start.plain.values) == ((4.0, 4.0), (8.0, 8.0))
    assert "alone takes 2.00 s; idefics takes 2.00 times as long" in start.notes[0]
    assert load.ours.values == (0.5, 0.5)
    assert memory.ours.values == (1.0, 1.0)
    assert all(row.agreement.agrees for row in report.rows)


def test_a_gpu_is_measured_in_the_same_way() -> None:
    processes = FakeProcesses()
    report = measured("load", processes=processes, device="cuda:0")

    assert [order.spec.device for order in processes.orders] == ["cuda:0", "cuda:0"]
    assert "GPU memory" in report.rows[1].compares


def test_another_first_token_is_reported_with_both() -> None:
    (row,) = measured("start", processes=FakeProcesses(plain_text="The")).rows

    assert not row.agreement.agrees
    assert row.agreement.text == "first token 'A', plain 'The': differs"


def test_a_process_that_fails_does_not_stop_the_other_scenario() -> None:
    report = measured("start", "load", processes=FakeProcesses(start_error="no torch"))

    assert [(s.scenario, s.why) for s in report.failures] == [("start", "no torch")]
    assert {row.scenario for row in report.rows} == {"load"}


@pytest.mark.parametrize("side", ["ours", "plain"])
def test_a_child_loads_the_built_in_model_and_answers(
    side: Side, tmp_path: Path, warm_python: tuple[str, ...]
) -> None:
    picture = tmp_path / "picture.png"
    draw(picture, (640, 480), seed=1)
    folder = Path(idefics_cli.__file__).parent / "demo/weights"
    spec = LoadSpec(repo=str(folder), family="idefics2", dtype="float32", threads=1)
    order = LoadOrder(side, spec, folder, picture, 4)
    if side == "ours":
        report = FreshProcesses(FakeClock()).load(order)
    else:  # the same child without the seconds for imports
        program = "from idefics_cli.bench.cold_start.child import main; main()"
        command = [*warm_python, "-c", program]
        done = subprocess.run(command, input=pickle.dumps(order), capture_output=True, check=True)
        report = LoadReport(**json.loads(done.stdout))

    assert 0 < report.load_seconds < 60
    assert 50e6 < report.peak_bytes < 2e9
    assert len(report.tokens) == 4


# The load of the machine


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
