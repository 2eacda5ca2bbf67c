"""`idefics batch --server`: requests of a file, answered by a model that runs elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from idefics_cli.cli.services import Services
from idefics_cli.demo.samples import write_samples
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.server.service import ServerOptions
from tests.support.commands import Ran, run
from tests.support.http_servers import DEMO_SPEC, HttpServer, StillOpen, serving
from tests.support.kernels import with_kernels


@pytest.fixture(scope="module")
def demo() -> Iterator[HttpServer]:
    """Return a server of the built-in model."""
    options = ServerOptions(DEMO_SPEC, names=("demo", "idefics/demo"))
    with LocalEngine(with_kernels(DEMO_SPEC)) as engine, serving(StillOpen(engine), options) as it:
        yield it


def batch(*words: str) -> Ran:
    return run("batch", *words, services=Services(environ={}, stdin=None))


def rows_of(path: Path) -> list[dict[str, object]]:
    """Return the rows of answers without their times."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_the_answers_are_those_of_this_machine(demo: HttpServer, tmp_path: Path) -> None:
    names = [sample.file_name for sample in write_samples(tmp_path, count=3, seed=4)]
    rows: list[dict[str, object]] = [
        {"prompt": "Describe this image.", "images": [names[0]]},
        {"prompt": "How many shapes are there?", "images": [names[1]], "presence_penalty": 1.5},
        {"prompt": "Hi", "max_tokens": 3, "ignore_eos": True},
        {"prompt": "Compare.", "images": ["missing.png"]},
        {"messages": [{"role": "user", "content": "What can you do?"}], "label": 7},
    ]
    source = tmp_path / "r.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    there = batch(str(source), "-o", str(tmp_path / "there.jsonl"), "--server", demo.url)
    here = batch(str(source), "-o", str(tmp_path / "here.jsonl"), "-m", "demo", "--threads", "1")

    assert (there.code, here.code) == (3, 3)
    found = rows_of(tmp_path / "there.jsonl")
    assert found == rows_of(tmp_path / "here.jsonl")
    assert [row["status"] for row in found] == ["ok", "ok", "ok", "error", "ok"]
    shown = batch(str(source), "--server", demo.url, "--dry-run")
    assert shown.out.startswith(f"demo at {demo.url}/v1 answers\n")
    # What would fail is not asked.
    assert "4 requests, 16 at a time" in shown.out
    assert (shown.code, "1 request would fail" in shown.out) == (0, True)
