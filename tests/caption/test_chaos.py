"""A run that is killed, interrupted or out of space at random moments loses no picture."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.outputs import FORMATS, contents, destination, journal_in
from tests.support.zygote import Zygote

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX processes")


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    folder = tmp_path_factory.mktemp("first")
    (folder / "a.jpg").write_bytes(b"0")
    (folder / "r.jsonl").write_text('{"prompt": "Hi"}', "utf-8")
    with Zygote("fake", picture=folder / "a.jpg", requests=folder / "r.jsonl") as zygote:
        yield zygote


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(count: int) -> None:
    Path("photos").mkdir()
    for number in range(count):
        Path(f"photos/{number:03}.jpg").write_bytes(b"%d" % number)


@pytest.fixture(scope="module")
def undisturbed(
    fake: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, str]]:
    """Return a function from a format to the output of 60 pictures that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with contextlib.chdir(folder):
        pictures(60)

    @cache
    def get(format_: str) -> dict[str, str]:
        with contextlib.chdir(folder):
            Path(format_).mkdir()
            words = ("photos", "-f", format_, "-o", destination(format_, format_))
            assert fake.run(*words)[0] == 0
            return contents(Path(format_))

    return get


def whole_rows(path: Path) -> list[str]:
    """Return the names in JSON lines; only the last line may be torn."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["file_name"] for line in lines]


def test_a_run_killed_at_many_random_moments_has_every_picture_once(fake: Zygote) -> None:
    pictures(250)
    Path("whole").mkdir()
    Path("parts").mkdir()
    assert fake.run("photos", "-o", "whole/out.jsonl")[0] == 0
    chance = random.Random(4)
    command = ("photos", "-o", "parts/out.jsonl", "--batch-size", "3")
    journal = Path("parts/out.jsonl.journal")
    counts = []
    for _ in range(25):
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
    # The next run writes a row again if the kill came between the row and its line in the journal.
    assert all(later >= former - 1 for former, later in pairwise(counts)), "what is written stays"
    assert len(set(counts)) > 10, "the kills hit the run"

    assert fake.run(*command)[0] == 0
    assert contents(Path("parts")) == contents(Path("whole"))
    assert fake.run(*command)[1].endswith("nothing is left to caption\n")


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_any_signal_and_any_format_end_in_the_output_of_a_run_without(
    fake: Zygote,
    number: signal.Signals,
    format_: str,
    undisturbed: Callable[[str], dict[str, str]],
) -> None:
    pictures(60)
    Path("parts").mkdir()
    chance = random.Random(number)
    command = ("photos", "-f", format_, "-o", destination("parts", format_), "--batch-size", "2")
    journal = journal_in("parts", format_)
    ends = [
        fake.run(*command, number=number, seconds=chance.uniform(0, 0.02), after=journal)
        for _ in range(3)
    ]
    codes = [code for code, _ in ends]
    if number != signal.SIGKILL:
        # The journal exists a moment before the run handles signals.
        assert set(codes) <= {0, 130, -signal.SIGTERM}, ends
        assert 130 in codes
    assert fake.run(*command)[0] == 0
    assert contents(Path("parts")) == undisturbed(format_)


def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_when_there_is_room(
    fake: Zygote,
) -> None:
    pictures(100)
    Path("whole").mkdir()
    Path("parts").mkdir()
    assert fake.run("photos", "-o", "whole/out.csv")[0] == 0
    command = ("photos", "-o", "parts/out.csv")
    # At some limits there is room for the row of a picture, but not for its line in the journal.
    for limit in (700, *range(5_000, 5_600, 60), 9_000, 20_000):
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
    ("count", "kills"), [(12, 2), pytest.param(500, 50, marks=pytest.mark.slow)]
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
    Path("r.jsonl").write_text('{"prompt": "Hi"}', "utf-8")
    first = here / "scenes" / samples[0].file_name
    with Zygote("demo", picture=first, requests=here / "r.jsonl", python=warm_python) as zygote:
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
