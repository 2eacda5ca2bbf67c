"""Batches that are killed, interrupted or out of space lose no request, and answer none twice."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.demo.samples import write_samples
from tests.support.commands import run
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


def mixed_rows(count: int, pictures: list[str]) -> list[dict[str, Any]]:
    """Return requests of all shapes, some of them wrong, and some equal to others."""
    chance = random.Random(5)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        first, second = chance.sample(pictures, 2)
        question = chance.choice(["How many shapes are there?", "What color is the background?"])
        url = {"type": "image_url", "image_url": {"url": first}}
        content = [{"type": "text", "text": question}, url]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 20}
        line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions"}
        shapes: list[dict[str, Any]] = [
            {**line, "body": body},
            {"prompt": question, "image": first, "id": number},
            {"prompt": question, "image": first},
            {"prompt": "Compare these.", "images": [first, second]},
            {"prompt": "Hello."},
            {
                "image": first,
                "conversations": [{"from": "human", "value": f"<image>\n{question}"}],
            },
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": "Two."},
                    {"role": "user", "content": question},
                ]
            },
            {"prompt": question, "image": first, "temperature": 0.8, "seed": number},
            {"prompt": number},
        ]
        rows.append(shapes[number % len(shapes)])
    return rows


def write(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def answers(path: str) -> list[str]:
    """Return the whole rows of an output without times; only the last line may be torn."""
    file = Path(path)
    lines = file.read_text("utf-8").split("\n")[:-1] if file.exists() else []
    assert all(json.loads(line) for line in lines)
    return [re.sub(r'"(seconds|created)": [\d.]+', r'"\1": 0', line) for line in lines]


def test_500_mixed_requests_killed_ten_times_are_answered_once_as_one_by_one(
    fake: Zygote,
) -> None:
    pictures = [f"{number}.jpg" for number in range(20)]
    for name in pictures:
        Path(name).write_bytes(name.encode())
    write("r.jsonl", mixed_rows(500, pictures))
    assert fake.run("r.jsonl", "-o", "whole.jsonl", "--batch-size", "1", command="batch")[0] == 3
    chance = random.Random(4)
    command = ("r.jsonl", "-o", "parts.jsonl", "--batch-size", "7")
    counts: list[int] = []
    # On a slow machine, several kills come before the first row, and more of them are needed.
    while len(counts) < 10 or (len(set(counts)) <= 5 and len(counts) < 40):
        seconds = chance.uniform(0, 0.05)
        after = Path("parts.jsonl.journal")
        fake.run(*command, command="batch", number=signal.SIGKILL, seconds=seconds, after=after)
        counts.append(len(answers("parts.jsonl")))
    assert counts == sorted(counts), "what is written stays"
    assert len(set(counts)) > 5, "the kills hit the run"
    assert counts[-1] < 500

    assert fake.run(*command, command="batch")[0] == 3
    assert answers("parts.jsonl") == answers("whole.jsonl")
    assert len(answers("parts.jsonl")) == 500
    _, err = fake.run(*command, command="batch")
    assert "445 of 500 are answered, 55 failed before" in err
    assert "\nnothing is left to answer\n" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_batch_continues(fake: Zygote, number: signal.Signals) -> None:
    write("r.jsonl", [{"prompt": f"Question {n}"} for n in range(200)])
    command = ("r.jsonl", "-o", "parts.jsonl", "--batch-size", "2")
    assert fake.run("r.jsonl", "-o", "whole.jsonl", command="batch")[0] == 0
    journal = Path("parts.jsonl.journal")
    code, err = fake.run(*command, command="batch", number=number, seconds=0.02, after=journal)

    assert code == 130, err
    assert "interrupted: answered " in err
    assert fake.run(*command, command="batch")[0] == 0
    assert answers("parts.jsonl") == answers("whole.jsonl")


def test_a_full_disk_is_one_clear_error_and_the_batch_goes_on_when_there_is_room(
    fake: Zygote,
) -> None:
    write("r.jsonl", [{"prompt": f"Question {n}"} for n in range(100)])
    command = ("r.jsonl", "-o", "parts.jsonl")
    assert fake.run("r.jsonl", "-o", "whole.jsonl", command="batch")[0] == 0
    for limit in (700, *range(5_000, 5_600, 60), 9_000):
        code, err = fake.run(*command, command="batch", limit=limit)
        assert code == 1
        assert re.search(
            r"^error: cannot (keep the journal|write) `parts\.jsonl[^`]*`: File too large\n"
            r"hint: once that is fixed, the same command continues the run\n",
            err,
            re.MULTILINE,
        ), err
    assert len(answers("parts.jsonl")) > 10
    assert fake.run(*command, command="batch")[0] == 0
    assert answers("parts.jsonl") == answers("whole.jsonl")


@pytest.mark.slow
def test_the_built_in_model_killed_ten_times_answers_500_requests_as_one_by_one(
    here: Path, warm_python: tuple[str, ...]
) -> None:
    samples = write_samples(here / "scenes", count=20, seed=3)
    names = [f"scenes/{sample.file_name}" for sample in samples]
    write("r.jsonl", mixed_rows(500, names))
    chance = random.Random(6)
    command = ("r.jsonl", "-m", "demo", "--threads", "1", "--batch-size")
    parts = (*command, "8", "-o", "parts.jsonl")
    first, journal = here / names[0], Path("parts.jsonl.journal")
    with Zygote("demo", picture=first, requests=here / "r.jsonl", python=warm_python) as zygote:
        assert zygote.run(*command, "1", "-o", "whole.jsonl", command="batch")[0] == 3
        for _ in range(10):
            seconds = chance.uniform(0, 0.5)
            zygote.run(
                *parts, command="batch", number=signal.SIGKILL, seconds=seconds, after=journal
            )
        assert len(answers("parts.jsonl")) < 500
        assert zygote.run(*parts, command="batch")[0] == 3
    assert answers("parts.jsonl") == answers("whole.jsonl")


def test_the_built_in_model_answers_in_batches_as_one_by_one(here: Path) -> None:
    samples = write_samples(here / "scenes", count=6, seed=3)
    write("r.jsonl", mixed_rows(36, [f"scenes/{sample.file_name}" for sample in samples]))
    for size in ("1", "8"):
        ran = run("batch", "r.jsonl", "-m", "demo", "-o", f"{size}.jsonl", "--batch-size", size)
        assert ran.code == 3, ran.err
    rows = answers("8.jsonl")
    assert rows == answers("1.jsonl")
    replies = [json.loads(row).get("reply") for row in rows]
    assert len({reply for reply in replies if reply}) > 5, "the model looked at the pictures"
    assert sum(reply is None for reply in replies) == 8, "4 lines of a batch and 4 wrong rows"
