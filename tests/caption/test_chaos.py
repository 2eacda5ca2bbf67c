"""A run that is killed, interrupted or out of space at random moments loses no picture."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.outputs import FORMATS, contents, destination
from tests.support.warm import PLAIN_MEMORY

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX processes")

# Imports everything once, and forks for each command line: a start then takes milliseconds.
ZYGOTE = textwrap.dedent(
    """
    import contextlib, json, os, resource, signal, sys, time
    import idefics_cli.caption.resume.journaled_sink, idefics_cli.caption.runner
    import idefics_cli.ui.views.progress
    from typer.main import get_command
    from idefics_cli.caption.sinks import SINKS
    from idefics_cli.cli.app import app
    from idefics_cli.cli.services import Services
    from tests.support.commands import World
    from tests.support.fakes import FakeEngine

    def answer(request):
        time.sleep(0.0005)
        return "a picture of " + request.attachments[0].source

    engine = FakeEngine(answer)
    services = Services() if sys.argv[1] == "demo" else World(engine).services
    # Everything that a run imports. With one thread, OpenMP has no pool. A child would not have
    # its threads, and would wait for them for ever.
    words = ["caption", sys.argv[2], "-m", "demo", "-q", "-o", os.devnull, "--threads", "1"]
    idefics = get_command(app)
    try:
        idefics.main(words, obj=services)
    except SystemExit:
        pass
    # A signal during this import would be reported as a missing library.
    with contextlib.suppress(ImportError):
        import pyarrow.parquet

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            os.chdir(order["folder"])
            if order["limit"]:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"],) * 2)
            os.dup2(os.open(order["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            engine.is_closed = False  # the run at the start closed it
            try:
                idefics.main(order["arguments"], prog_name="idefics", obj=services)
            except SystemExit as end:
                os._exit(end.code or 0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """
)


class Zygote:
    """Runs `idefics` many times, in children of one process."""

    def __init__(
        self, *kind: str, python: Sequence[str] = (sys.executable, "-W", "ignore")
    ) -> None:
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [*python, "-c", ZYGOTE, *kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"} | PLAIN_MEMORY,
        )

    def run(
        self,
        *arguments: str,
        number: int = 0,
        seconds: float = 0.0,
        after: Path | None = None,
        limit: int = 0,
    ) -> tuple[int, str]:
        """Run `idefics` and return its exit code and stderr.

        Args:
            arguments: Arguments as typed.
            number: Signal that the run gets; 0 for none.
            seconds: Time of the signal after the start, or after *after*.
            after: File that must have grown before the time counts.
            limit: Most bytes that a file may have; 0 for no limit.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = ["caption", *arguments]
        size = _size(after)
        order = {"arguments": words, "folder": os.getcwd(), "limit": limit, "err": "err"}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if number:
            deadline = time.monotonic() + 20
            # A run that has ended cannot get a signal.
            with contextlib.suppress(ProcessLookupError):
                while after is not None and _size(after) == size and time.monotonic() < deadline:
                    os.kill(child, 0)
                    time.sleep(0.0005)
                time.sleep(seconds)
                os.kill(child, number)
        code = int(self._process.stdout.readline())
        return code, Path("err").read_text("utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


def _size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.exists() else 0


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    picture = tmp_path_factory.mktemp("first") / "a.jpg"
    picture.write_bytes(b"0")
    with Zygote("fake", str(picture)) as zygote:
        yield zygote


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(count: int) -> None:
    Path("photos").mkdir()
    for number in range(count):
        Path(f"photos/{number:03}.jpg").write_bytes(b"%d" % number)


def whole_rows(path: Path) -> list[str]:
    """Return the names in JSON lines; only the last line may be torn."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["file_name"] for line in lines]


def test_a_run_killed_at_fifty_random_moments_has_every_picture_once(fake: Zygote) -> None:
    pictures(500)
    Path("whole").mkdir()
    Path("parts").mkdir()
    assert fake.run("photos", "-o", "whole/out.jsonl")[0] == 0
    chance = random.Random(4)
    command = ("photos", "-o", "parts/out.jsonl", "--batch-size", "3")
    journal = Path("parts/out.jsonl.journal")
    counts = []
    for _ in range(50):
        fake.run(
            *command,
            number=signal.SIGKILL,
            seconds=chance.uniform(0, 0.02),
            # The signal sometimes comes before the first row, while the existing rows are read.
            after=journal if chance.random() < 0.8 else None,
        )
        names = whole_rows(Path("parts/out.jsonl"))
        assert max(Counter(names).values(), default=1) == 1
        counts.append(len(names))
    assert counts == sorted(counts), "what is written stays"
    assert len(set(counts)) > 20, "the kills hit the run"

    assert fake.run(*command)[0] == 0
    assert contents(Path("parts")) == contents(Path("whole"))
    assert fake.run(*command)[1].endswith("nothing is left to caption\n")


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_any_signal_and_any_format_end_in_the_output_of_a_run_without(
    fake: Zygote, number: signal.Signals, format_: str
) -> None:
    pictures(100)
    Path("whole").mkdir()
    Path("parts").mkdir()
    assert fake.run("photos", "-f", format_, "-o", destination("whole", format_))[0] == 0
    chance = random.Random(number)
    command = ("photos", "-f", format_, "-o", destination("parts", format_), "--batch-size", "2")
    journal = Path("parts/out.journal" if format_ != "txt" else "parts/idefics-caption.journal")
    ends = [
        fake.run(*command, number=number, seconds=chance.uniform(0, 0.02), after=journal)
        for _ in range(4)
    ]
    codes = [code for code, _ in ends]
    if number != signal.SIGKILL:
        # The journal exists a moment before the run handles signals.
        assert set(codes) <= {0, 130, -signal.SIGTERM}, ends
        assert 130 in codes
    assert fake.run(*command)[0] == 0
    assert contents(Path("parts")) == contents(Path("whole"))


def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_when_there_is_room(
    fake: Zygote,
) -> None:
    pictures(100)
    Path("whole").mkdir()
    Path("parts").mkdir()
    assert fake.run("photos", "-o", "whole/out.csv")[0] == 0
    command = ("photos", "-o", "parts/out.csv")
    # At some limits there is room for the row of a picture, but not for its line in the journal.
    for limit in (700, *range(5_000, 5_600, 30), 9_000, 20_000):
        code, err = fake.run(*command, limit=limit)
        assert code == 1
        assert re.search(
            r"^error: cannot (keep the journal|write) `parts/out\.csv[^`]*`: File too large\n"
            r"hint: once that is fixed, the same command continues the run\n",
            err,
            re.MULTILINE,
        ), err
    lines = Path("parts/out.csv").read_text("utf-8").splitlines()
    assert len(lines) > 10
    assert all(line.count(",") == lines[0].count(",") for line in lines)

    assert fake.run(*command)[0] == 0
    assert contents(Path("parts")) == contents(Path("whole"))


@pytest.mark.parametrize(
    ("count", "kills"), [(16, 3), pytest.param(500, 50, marks=pytest.mark.slow)]
)
def test_the_built_in_model_killed_again_and_again_says_what_it_says_undisturbed(
    here: Path, count: int, kills: int, warm_python: tuple[str, ...]
) -> None:
    from idefics_cli.demo.samples import write_samples

    samples = write_samples(here / "scenes", count=count, seed=3)
    Path("whole").mkdir()
    Path("parts").mkdir()
    chance = random.Random(6)
    command = [
        *("scenes/scene-*.png", "-m", "demo", "-o", "parts/out.jsonl"),
        *("--batch-size", "4", "--threads", "1"),
    ]
    journal = Path("parts/out.jsonl.journal")
    with Zygote("demo", f"scenes/{samples[0].file_name}", python=warm_python) as zygote:
        assert zygote.run(*command[:3], "-o", "whole/out.jsonl", "--threads", "1")[0] == 0
        for _ in range(kills):
            seconds = chance.uniform(0, 0.3)
            zygote.run(*command, number=signal.SIGKILL, seconds=seconds, after=journal)
        assert zygote.run(*command)[0] == 0
    rows = Path("parts/out.jsonl").read_text("utf-8").splitlines()
    said = {row["file_name"]: row["caption"] for row in map(json.loads, rows)}
    assert len(rows) == count
    right = sum(said[f"scenes/{s.file_name}"] == s.caption for s in samples)
    assert right >= 0.98 * count, f"{right} of {count}"
    assert contents(Path("parts")) == contents(Path("whole"))
