"""`.ci/gpu_check.py` judges each job alone; its quick form runs without a GPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).parents[2] / ".ci" / "gpu_check.py"
WRITE = (
    "import os, time\nfile = open(os.environ['FIGURES'], 'a')\nprint({!r}, file=file, flush=True)\n"
)
RIGHT = WRITE.format('{"name": "sum", "value": 4, "ok": true}')
WRONG = WRITE.format('{"name": "sum", "value": 5, "ok": false}')
SKIPPED = WRITE.format('{"skipped": "needs CUDA"}')


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # `dataclass` looks there
    spec.loader.exec_module(module)
    return module


def test_a_broken_job_is_reported_and_the_others_run(gpu_check: ModuleType, tmp_path: Path) -> None:
    codes = {
        "right": (RIGHT, 30),
        "wrong": (RIGHT + WRONG, 30),
        "crashes": (RIGHT + "os.abort()", 30),
        "hangs": (RIGHT + "time.sleep(600)", 1),
        "cut": (RIGHT + "file.write('{\"name\"')\n", 30),
        "silent": ("pass", 30),
        "skipped": (SKIPPED, 30),
        "last": (RIGHT, 30),
    }
    jobs = [
        gpu_check.Job(name, [sys.executable, "-c", code], seconds)
        for name, (code, seconds) in codes.items()
    ]
    found = {each.job: each for each in gpu_check.run_jobs(jobs, tmp_path, seconds=300)}
    assert {name: (each.word, each.reason) for name, each in found.items()} == {
        "right": ("OK", "1 right"),
        "wrong": ("BAD", "1 wrong, first: sum: 5"),
        "crashes": ("BAD", "exit code -6"),
        "hangs": ("BAD", "not ended after 1 s"),
        "cut": ("OK", "1 right"),
        "silent": ("BAD", "nothing was checked"),
        "skipped": ("SKIPPED", "needs CUDA"),
        "last": ("OK", "1 right"),
    }
    lines = (tmp_path / "figures.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"job": "right", "name": "sum", "value": 4, "ok": True}
    assert len(lines) == 8


def test_a_job_that_has_no_time_left_is_skipped(gpu_check: ModuleType, tmp_path: Path) -> None:
    jobs = [
        gpu_check.Job("long", [sys.executable, "-c", "import time; time.sleep(600)"], 30),
        gpu_check.Job("late", [sys.executable, "-c", RIGHT], 30),
    ]
    started = time.monotonic()
    first, second = gpu_check.run_jobs(jobs, tmp_path, seconds=1, least_seconds=0.5)
    assert time.monotonic() - started < 30
    assert (first.word, first.reason) == ("BAD", "not ended after 1 s")
    assert (second.word, second.reason) == ("SKIPPED", "no time was left")


def test_all_jobs_together_take_less_than_ten_minutes(gpu_check: ModuleType) -> None:
    assert sum(gpu_check.LIMITS.values()) <= gpu_check.SECONDS < 545


def test_the_quick_form_runs_on_the_cpu_and_says_what_needs_cuda(tmp_path: Path) -> None:
    names = ["release", "paths", "graphs"]
    command = [sys.executable, str(PROGRAM), str(tmp_path / "out"), "--device", "cpu", "--quick"]
    done = subprocess.run(
        [*command, "--jobs", ",".join(names)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line.split() for line in done.stdout.partition("\n\n")[2].splitlines()]
    assert [row[:2] for row in table[:3]] == [
        ["OK", "release"],
        ["OK", "paths"],
        ["SKIPPED", "graphs"],
    ]
    assert " ".join(table[2]).endswith("needs CUDA, and the device is cpu")
    assert " ".join(table[3]) == "2 OK, 0 BAD, 1 SKIPPED"
    figures = [
        json.loads(line) for line in (tmp_path / "out" / "figures.jsonl").read_text().splitlines()
    ]
    assert [line["value"] for line in figures if line["job"] == "release"] == ["freed", "freed"]


def test_a_job_that_does_not_exist_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path / "out"), "--jobs", "release,speed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no job 'speed'; the jobs are attention, release," in done.stderr
    assert not (tmp_path / "out").exists()
