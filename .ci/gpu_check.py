"""Check and measure this checkout on a machine with a GPU, in one run of less than ten minutes.

    python3 .ci/gpu_check.py FOLDER                        # all jobs on "cuda"
    python3 .ci/gpu_check.py FOLDER --device cpu --quick   # the same jobs, small, without a GPU

The jobs are in `gpu_jobs.py`. Each runs in a process of its own, so that a job that crashes, hangs
or breaks the allocator of torch does not affect the others. FOLDER gets `figures.jsonl`, one
line for each figure, and a log for each job. No job uses the network. The exit code is 1 if a job
is BAD, or if none is OK.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SECONDS = 540
# Seconds of each job; their sum is the whole time. A job ends itself before its limit.
LIMITS = {
    "attention": 40,
    "release": 25,
    "check": 80,
    "tests": 85,
    "paths": 40,
    "graphs": 40,
    "shape": 125,
    "cards": 55,
    "quantized": 50,
}
# These load random weights in the shape of a real model. The job "weights" writes them meanwhile.
NEED_WEIGHTS = ("shape", "cards", "quantized")
# A job that got less time than this would only load a model.
LEAST_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """A process that checks something.

    Attributes:
        name: Name of the job.
        command: The command. It appends lines to the file that `FIGURES` names: objects with
            "name", "value" and "ok", which is null for a figure that is neither right nor wrong;
            or an object with "skipped", the reason.
        seconds: Time limit.
    """

    name: str
    command: Sequence[str]
    seconds: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a job: "OK", "BAD" or "SKIPPED", with the reason if it is not "OK"."""

    job: str
    word: str
    seconds: float
    reason: str = ""


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    *,
    seconds: float = SECONDS,
    least_seconds: float = LEAST_SECONDS,
) -> Iterator[Verdict]:
    """Run *jobs* one after the other, and yield the verdict of each.

    Args:
        jobs: The jobs.
        folder: Folder of the figures and logs.
        seconds: Time for all jobs. A job that would start later is skipped.
        least_seconds: A job that would get less time than this is skipped, unless that is all that
            it needs.
    """
    end = time.monotonic() + seconds
    for job in jobs:
        limit = min(job.seconds, end - time.monotonic())
        if limit < min(least_seconds, job.seconds):
            yield Verdict(job.name, "SKIPPED", 0, "no time was left")
            continue
        started = time.monotonic()
        figures = folder / f"{job.name}.figures"
        with started_job(job, folder, figures, limit) as process:
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
        lines = read_lines(figures)
        with (folder / "figures.jsonl").open("a", encoding="utf-8") as whole:
            whole.writelines(json.dumps({"job": job.name, **line}) + "\n" for line in lines)
        word, reason = judge(lines, code, limit)
        yield Verdict(job.name, word, time.monotonic() - started, reason)


@contextmanager
def started_job(
    job: Job, folder: Path, figures: Path, limit: float
) -> Iterator[subprocess.Popen[bytes]]:
    """Start *job*; at the end of the block, end it with all its children."""
    given = {
        "FIGURES": str(figures),
        "SECONDS": str(limit),
        "PYTHONPATH": str(HERE.parent),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    with (folder / f"{job.name}.log").open("wb") as log:
        process = subprocess.Popen(
            job.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **given},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read_lines(figures: Path) -> list[dict[str, object]]:
    """Return the lines that a job wrote, without a last one that is cut."""
    if not figures.exists():
        return []
    whole = figures.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def judge(lines: Sequence[dict[str, object]], code: int | None, limit: float) -> tuple[str, str]:
    """Return the verdict of a job by its *lines* and its exit *code*, None if it took too long."""
    wrong = [line for line in lines if line.get("ok") is False]
    if wrong:
        return "BAD", f"{len(wrong)} wrong, first: {wrong[0]['name']}: {wrong[0]['value']}"
    if code is None:
        return "BAD", f"not ended after {limit:.0f} s"
    if code != 0:
        return "BAD", f"exit code {code}"
    skipped = [str(line["skipped"]) for line in lines if "skipped" in line]
    right = sum(line.get("ok") is True for line in lines)
    if right:
        return "OK", f"{right} right" + "".join(f"; skipped: {reason}" for reason in skipped)
    return ("SKIPPED", skipped[0]) if skipped else ("BAD", "nothing was checked")


def show(verdicts: Sequence[Verdict], folder: Path) -> None:
    """Print the table of the verdicts, and then everything that is wrong."""
    print()
    for verdict in verdicts:
        line = f"{verdict.word:8}{verdict.job:11}{verdict.seconds:4.0f} s  {verdict.reason}"
        print(" ".join(line.splitlines()))
    counts = Counter(verdict.word for verdict in verdicts)
    print(", ".join(f"{counts[word]} {word}" for word in ("OK", "BAD", "SKIPPED")))
    print(f"figures and logs: {folder}")


def main() -> int:
    """Run the jobs that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="empty or new folder for figures and logs")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N or cpu")
    parser.add_argument("--quick", action="store_true", help="small models and few questions")
    parser.add_argument("--jobs", default=",".join(LIMITS), help="comma-separated, default all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time of the whole run")
    given = parser.parse_args()
    names = given.jobs.split(",")
    if unknown := [name for name in names if name not in LIMITS]:
        parser.error(f"there is no job {unknown[0]!r}; the jobs are {', '.join(LIMITS)}")
    # The limits are for a GPU. A CPU may be busy with other work.
    patience = 10 if given.device == "cpu" else 1
    given.seconds *= patience
    given.folder.mkdir(parents=True, exist_ok=True)
    if any(given.folder.iterdir()):
        parser.error(f"{given.folder} is not empty")

    with tempfile.TemporaryDirectory(prefix="idefics-gpu-check-", dir=_scratch_place()) as scratch:

        def job(name: str, seconds: float) -> Job:
            words = [name, scratch, "--device", given.device, *(["--quick"] * given.quick)]
            return Job(name, [sys.executable, str(HERE / "gpu_jobs.py"), *words], seconds)

        verdicts = []
        with ExitStack() as stack:
            if set(names) & set(NEED_WEIGHTS):
                maker = job("weights", given.seconds)
                figures = given.folder / "weights.figures"
                stack.enter_context(started_job(maker, given.folder, figures, given.seconds))
            jobs = [job(name, LIMITS[name] * patience) for name in names]
            for verdict in run_jobs(jobs, given.folder, seconds=given.seconds):
                print(f"{verdict.word:8}{verdict.job}: {verdict.reason}", flush=True)
                verdicts.append(verdict)
    show(verdicts, given.folder)
    words = {verdict.word for verdict in verdicts}
    return int("BAD" in words or "OK" not in words)


def _scratch_place() -> str | None:
    """Return the folder in memory, if there is one that can hold 16 GB of weights."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        return None
    state = os.statvfs(memory)
    return str(memory) if state.f_bavail * state.f_frsize > 20 * 2**30 else None


if __name__ == "__main__":
    sys.exit(main())
