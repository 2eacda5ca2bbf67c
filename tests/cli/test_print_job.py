"""`idefics caption --print-job` prints scripts that work: bash runs one, YAML reads the other."""

from __future__ import annotations

import importlib
import io
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from idefics_cli.demo.samples import write_samples
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.outputs import contents
from tests.support.photo_folder import describe_photo

ARGUMENTS = (
    *("photos/", "it's here.jpg", "-r", "-m", "demo", "-o", "out dir/captions.jsonl"),
    *("--prompt", 'What is "it"? $HOME', "--no-strip-preamble", "--ban", "a", "--ban", "-b"),
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def print_job(scheduler: str, *arguments: str) -> Ran:
    services = World(FakeEngine(describe_photo), stdin=io.BytesIO(b"a.jpg")).services
    return run("caption", *arguments, "--print-job", scheduler, services=services)


def command_of(script: str) -> list[str]:
    (line,) = [line for line in script.splitlines() if line.startswith("exec ")]
    return shlex.split(line)[1:]


def test_the_command_of_a_task_is_the_command_of_the_user() -> None:
    ran = print_job("slurm", *ARGUMENTS, "--shard", "auto/3")
    assert (ran.code, ran.err) == (0, "")
    assert command_of(ran.out) == [
        *("idefics", "caption", "--recursive", "--model=demo", '--prompt=What is "it"? $HOME'),
        *("--ban=a", "--ban=-b", "--no-strip-preamble", "--output=out dir/captions.jsonl"),
        *("--shard", "auto/3", "--", "photos/", "it's here.jpg"),
    ]
    assert "#SBATCH --array=0-2\n" in ran.out
    assert "# After: `idefics collect 'out dir/captions.jsonl'`.\n" in ran.out
    assert "gres" not in ran.out


def test_a_model_that_must_be_downloaded_is_named_and_gets_a_gpu() -> None:
    ran = print_job("slurm", "photos", "-o", "a.csv", "--shard", "0/16")
    assert "#SBATCH --gres=gpu:1\n" in ran.out
    assert "# Before: `idefics models pull smolvlm-500m`, with the HF_HOME" in ran.out
    two = print_job("slurm", "p", "-f", "txt", "--shard", "auto/2", "--devices", "cuda:0,cuda:1")
    assert "#SBATCH --gres=gpu:2\n" in two.out
    assert "collect" not in two.out, "sidecars need no collecting"
    cpu = print_job("k8s", "p", "-f", "txt", "--shard", "auto/2", "--device", "cpu")
    assert "nvidia" not in cpu.out


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_runs_the_script_of_each_task_and_the_shards_are_those_of_one_run(
    here: Path, warm_python: tuple[str, ...]
) -> None:
    write_samples(here / "photos", count=6, seed=2)
    arguments = ("photos", "-m", "demo", "-o", "parts/out.jsonl", "--threads", "1")
    script = print_job("slurm", *arguments, "--shard", "auto/2").out
    for folder in ("bin", "parts", "whole"):
        Path(folder).mkdir()
    program = f'#!/bin/sh\nexec {shlex.join(warm_python)} -m idefics_cli "$@"\n'
    Path("bin/idefics").write_text(program)
    Path("bin/idefics").chmod(0o755)
    root = str(Path(__file__).parents[2])
    environ = {
        **os.environ,
        "PATH": f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": root,
    }
    for task in ("0", "1"):
        ran = subprocess.run(
            ["bash", "-s"],
            input=script,
            text=True,
            capture_output=True,
            cwd="/",
            env={**environ, "SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "1"},
            timeout=120,
        )
        assert ran.returncode == 0, ran.stderr
        assert f"shard {task}/2 (SLURM_ARRAY_TASK_ID)" in ran.stderr
    assert run("collect", "parts/out.jsonl").code == 0
    assert run(*("caption", *arguments[:4], "whole/out.jsonl"), "--threads", "1").code == 0
    assert contents(Path("parts"))["out.jsonl"] == contents(Path("whole"))["out.jsonl"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_a_missing_program_is_told_by_the_script(here: Path) -> None:
    script = print_job("slurm", *ARGUMENTS, "--shard", "auto/3").out
    ran = subprocess.run(
        [str(shutil.which("bash")), "-s"],
        input=script,
        text=True,
        capture_output=True,
        env={"PATH": str(here)},
        timeout=30,
    )
    assert (ran.returncode, ran.stderr) == (
        127,
        "idefics is not on PATH: activate its environment before sbatch\n",
    )


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_script() -> None:
    script = print_job("slurm", *ARGUMENTS, "--shard", "auto/3").out
    ran = subprocess.run(
        ["shellcheck", "--severity=warning", "-"],
        input=script,
        text=True,
        capture_output=True,
        timeout=30,
    )
    assert (ran.returncode, ran.stdout) == (0, "")


def test_the_manifest_is_an_indexed_job_with_the_command(here: Path) -> None:
    yaml = importlib.import_module("yaml")
    ran = print_job("k8s", *ARGUMENTS, "--shard", "auto/3")
    job = yaml.safe_load(ran.out)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    (container,) = spec["template"]["spec"]["containers"]
    slurm = print_job("slurm", *ARGUMENTS, "--shard", "auto/3")
    assert container["command"] == command_of(slurm.out)
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"] == str(here)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize(
    ("scheduler", "arguments", "error"),
    [
        ("pbs", ["--shard", "auto/3"], "--print-job must be slurm or k8s, not `pbs`"),
        ("slurm", [], "--print-job needs the number of shards"),
        ("slurm", ["--shard", "auto"], "--print-job needs the number of shards"),
        ("k8s", ["--shard", "auto/0"], "`0/0` is not a shard: the number of shards is from 1"),
        ("k8s", ["--shard", "1/3", "--filelist", "-"], "the tasks of a job have no stdin"),
    ],
)
def test_what_cannot_be_a_job_is_refused(scheduler: str, arguments: list[str], error: str) -> None:
    ran = print_job(scheduler, "photos", "-o", "a.jsonl", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {error}"), ran.err


def test_a_job_needs_an_output_that_stays() -> None:
    ran = print_job("slurm", "photos", "--shard", "auto/3")
    assert ran.err.startswith("error: the shard 0/3 needs an output file\n")
