"""`idefics caption` takes pictures of object stores: each once, and without their credentials."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.types import Attachment, GenerationRequest
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.sources import PICTURE
from tests.support.stores import SlowDownError, Store

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: type[Store]) -> None:
    """The current folder; the store has 12 pictures."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        folder = "b/p/sub" if number % 3 == 0 else "b/p"
        store().pipe_file(f"/{folder}/{number:02}.png", PICTURE + b"%d" % number)
    store().pipe_file("/b/p/notes.txt", b"words")


def describe(request: GenerationRequest) -> str:
    return f"caption of {request.attachments[0].source.rpartition('/')[2]}"


def caption(*arguments: str, **variables: str) -> Ran:
    services = World(FakeEngine(describe), environ=variables).services
    return run("caption", *arguments, services=services)


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_reads_that_fail_now_and_then_lose_no_picture(store: type[Store]) -> None:
    store.fails_each = 5
    ran = caption("s3://b/p", "-r", "-o", "out.jsonl")

    assert (ran.code, len(store.failed) >= 2) == (0, True), ran.err
    found = rows("out.jsonl")
    assert [row["file_name"] for row in found] == sorted(
        f"s3://b/p/{'sub/' if number % 3 == 0 else ''}{number:02}.png" for number in range(12)
    )
    assert len({row["sha256"] for row in found}) == 12


def test_a_run_goes_on_with_what_is_new_or_changed_in_the_store(store: type[Store]) -> None:
    assert caption("s3://b/p/*.png", "-o", "out.jsonl").code == 0
    reads = len(store.reads)
    store().pipe_file("/b/p/05.png", PICTURE + b"changed")
    store().pipe_file("/b/p/99.png", PICTURE)
    again = caption("s3://b/p/*.png", "-o", "out.jsonl")

    assert "captioned 2 of 2" in again.err, again.err
    assert (len(store.reads) - reads, len(rows("out.jsonl"))) == (2, 9)


def test_a_failed_read_is_a_row_and_retry_failed_takes_it(store: type[Store]) -> None:
    store.errors += [SlowDownError(403)]
    ran = caption("s3://b/p/{01..02}.png", "-o", "out.jsonl")
    assert ran.code == 3
    (failed,) = [row for row in rows("out.jsonl") if row["status"] == "error"]
    assert failed["error_kind"] == "fetch_failed"
    again = caption("s3://b/p/{01..02}.png", "-o", "out.jsonl", "--retry-failed")
    assert (again.code, [row["status"] for row in rows("out.jsonl")]) == (0, ["ok", "ok"])


def test_shards_divide_a_store_and_collect_joins_them() -> None:
    for folder in ("whole", "parts"):
        Path(folder).mkdir()
    assert caption("s3://b/p", "-r", "-o", "whole/out.jsonl").code == 0
    for index in range(3):
        assert caption("s3://b/p", "-r", "-o", "parts/out.jsonl", "--shard", f"{index}/3").code == 0
    assert run("collect", "parts/out.jsonl").code == 0
    first, second = (
        [{**row, "seconds": 0} for row in rows(f"{folder}/out.jsonl")]
        for folder in ("whole", "parts")
    )
    assert first == second


def test_a_question_is_asked_about_a_picture_of_a_store() -> None:
    services = World(FakeEngine(describe)).services
    ran = run("ask", "What is it?", "-i", "s3://b/p/01.png", services=services)
    assert tuple(ran) == (0, "caption of 01.png\n", "")


def test_a_worker_gets_all_that_is_known_of_a_picture() -> None:
    item = CaptionItem("k", Attachment("s"), "r", (("a", "b"),), 7, (8, 9), "tag")
    assert asdict(pickle.loads(pickle.dumps(item))) == asdict(item)


def test_a_password_is_in_no_file_and_no_message() -> None:
    address = f"sftp://me:{SECRET}@b/p"
    ran = caption(address, "-r", "-o", "out.jsonl", "-v")
    assert ran.code == 0
    texts = [path.read_text() for path in Path().iterdir()] + [ran.out, ran.err]
    assert not [text for text in texts if SECRET in text]
    assert len(rows("out.jsonl")) == 12


def test_what_is_not_there_or_not_possible_is_told() -> None:
    for arguments, message in (
        (("s3://b/none",), "no such file: `s3://b/none`"),
        (("s3://b/p/*.gif",), "no pictures in `s3://b/p/*.gif`"),
        (("s3://b/00000.tar",), "`s3://b/00000.tar` is an archive in another place"),
        (("s3://b/p", "--offline"), "cannot list `s3://b/p`: --offline is set"),
        (("s3://b/p", "-o", "s3://b/out.jsonl"), "cannot write `s3://b/out.jsonl`: captions go to"),
        (("s3://b/p", "-f", "txt"), "has no folder to put a caption file in"),
    ):
        ran = caption(*arguments)
        assert (ran.code in (1, 2), message in ran.err) == (True, True), ran.err
        assert "Traceback" not in ran.err
    assert caption("s3://b/p", "-f", "txt", "-o", "out", "-r").code == 0
    assert Path("out/sub/03.txt").read_text() == "caption of 03.png\n"
